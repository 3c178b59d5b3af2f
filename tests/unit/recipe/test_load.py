"""Recipes: what is accepted, and what a user reads of what is not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from medunifier_cli.errors import RecipeError, one_line
from medunifier_cli.recipe.bounds import Bounds
from medunifier_cli.recipe.load import (
    dump_recipe,
    find_recipe,
    load_any,
    load_recipe,
    load_saved,
    stage_of,
)
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    """The problems in the error line that the recipe `text`, in `mine.yaml`, raises."""
    Path("mine.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("mine.yaml", overrides)
    assert str(caught.value) == one_line(str(caught.value))
    return re.split(r"; (?=\w+\.yaml:|-o |and \d+ more$)", str(caught.value))


@pytest.mark.usefixtures("here")
class TestMistakes:
    def test_three_at_once_each_with_line_and_nearest_key(self) -> None:
        text = "objectives:\n  itg_weigth: 2\noptim:\n  warmup: 5\n  peak_lr: fast\n"
        assert problems(text) == [
            "mine.yaml:2: objectives.itg_weigth is not a recipe key; did you mean objectives.itg?",
            "mine.yaml:4: optim.warmup: '5' is out of range; it must be at least 0 and at most 1",
            "mine.yaml:5: optim.peak_lr: expected a number, not 'fast'",
        ]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("optm:\n  peak_lr: 1\n", "1: optm is not a recipe key; did you mean optim?"),
            ("peak_lr: 1\n", "1: peak_lr is not a recipe key; did you mean optim.peak_lr?"),
            ("optim:\n  seed: 1\n", "2: optim.seed is not a recipe key; did you mean train.seed?"),
            (
                "model:\n  vit:\n    nam: x\n",
                "3: model.vit.nam is not a recipe key; did you mean model.vit.name?",
            ),
            ("optim:\n  beta: 1\n", "2: optim.beta is not a recipe key; did you mean optim.beta1?"),
            (
                "objectives:\n  tig_wieght: 1\n",
                "2: objectives.tig_wieght is not a recipe key; did you mean objectives.tig?",
            ),
            (
                "text:\n  zzzzzzzz: 1\n",
                "2: text.zzzzzzzz is not a recipe key; available: "
                "tokenizer, vocabulary, max_tokens, strip_deidentified, section_marks, drop",
            ),
            ("train:\n  seed: true\n", "2: train.seed: expected a whole number, not 'true'"),
            ("train:\n  seed: 1.5\n", "2: train.seed: expected a whole number, not '1.5'"),
            ("train:\n  seed:\n", "2: train.seed: expected a whole number, not nothing"),
            ("optim:\n  peak_lr: .nan\n", "2: optim.peak_lr: expected a number, not '.nan'"),
            ("optim:\n  peak_lr: '1e-4'\n", "2: optim.peak_lr: expected a number, not '1e-4'"),
            ("optim:\n  peak_lr: true\n", "2: optim.peak_lr: expected a number, not 'true'"),
            ("optim:\n  peak_lr: 0\n", "2: optim.peak_lr: '0' is out of range; it must be above 0"),
            ("train:\n  tensorboard: 1\n", "2: train.tensorboard: expected true or false, not '1'"),
            ("train:\n  precision: fp8\n", "2: train.precision: 'fp8' is none of: no, bf16, fp16"),
            (
                "data:\n  sections: findings\n",
                "2: data.sections: expected a list such as [a, b], not 'findings'",
            ),
            (
                "data:\n  sections: [findings, 3]\n",
                "2: data.sections: expected text, not '3'; put it in quotes if it is meant as text",
            ),
            ("data:\n  dataset: [a]\n", "2: data.dataset: expected text, not \"['a']\""),
            ("name: 2024\n", "1: name: expected text, not '2024'; put it in quotes if it is meant as text"),
            ("train:\n  seed: 1\n  seed: 2\n", "3: train.seed is set twice; first in line 2"),
            ("data: {}\ndata: {}\n", "2: data is set twice; first in line 1"),
            ("[1, 2]\n", "1: a recipe is `key: value` lines"),
            ("just words\n", "1: a recipe is `key: value` lines"),
            ("name: !!python/object/apply:os.getcwd []\n", None),
            ("train:\n\tseed: 1\n", "2: not valid YAML: found character '\\t' that cannot start any token"),
            ("a: [1\n", None),
            ("data: &x\n  workers: *x\n", None),
        ],
    )
    def test_one_line_each(self, text: str, line: str | None) -> None:
        lines = problems(text)
        assert len(lines) == 1
        assert lines[0].startswith("mine.yaml:")
        if line is not None:
            assert lines == [f"mine.yaml:{line}"]

    def test_value_where_a_section_belongs(self) -> None:
        (line,) = problems("model:\n  qformer: 3\n")
        assert line.startswith("mine.yaml:2: model.qformer: is a section with the keys weights, layers,")

    def test_no_similar_key_lists_what_there_is(self) -> None:
        (line,) = problems("zzz: 1\n")
        assert line.startswith("mine.yaml:1: zzz is not a recipe key; available: stage, name, data,")

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("optim.peak_lr=abc", "expected a number, not 'abc'"),
            ("optim.peek_lr=1", "optim.peek_lr is not a recipe key; did you mean optim.peak_lr?"),
            ("seed=1", "seed is not a recipe key; did you mean train.seed?"),
            ("train.seed", "write it as key=value"),
            ("train.seed=", "expected a whole number, not nothing"),
            ("train.seed=[1", "expected a whole number, not '[1'"),
        ],
    )
    def test_overrides_say_which_one(self, override: str, line: str) -> None:
        assert problems("name: x\n", (override,)) == [f"-o {override}: {line}"]

    def test_file_and_overrides_together(self) -> None:
        lines = problems("train:\n  sed: 1\n", ("train.steps=-1",))
        assert [line.split(":")[0] for line in lines] == ["mine.yaml", "-o train.steps=-1"]

    def test_fields_that_disagree_come_with_the_rest(self) -> None:
        lines = problems("train:\n  global_batch: 100\n  sed: 1\nmodel:\n  qformer:\n    width: 100\n")
        assert lines == [
            "mine.yaml:3: train.sed is not a recipe key; did you mean train.seed?",
            "mine.yaml:6: model.qformer.width: 100 is not a multiple of model.qformer.heads 12",
            "mine.yaml:2: train.global_batch: 100 is not a multiple of train.micro_batch 64",
        ]

    def test_disagreement_with_a_value_that_could_not_be_read_is_not_invented(self) -> None:
        lines = problems("optim:\n  peak_lr: fast\n  warmup_lr: 0.5\n")
        assert lines == ["mine.yaml:2: optim.peak_lr: expected a number, not 'fast'"]

    def test_disagreement_of_an_override_with_a_default(self) -> None:
        (line,) = problems("name: x\n", ("objectives.itc=0",))
        assert line.startswith("mine.yaml: objectives.itm: needs objectives.itc")

    @pytest.mark.parametrize("name", ["recipes/demo.yaml", "nofile.yml", "folder/demo"])
    def test_missing_file(self, name: str) -> None:
        said = f"{name}: no such file; `mu recipes` lists the shipped ones"
        with pytest.raises(RecipeError, match=f"^{re.escape(said)}$"):
            load_recipe(name)

    def test_misspelt_name_offers_the_nearest_shipped_recipe(self) -> None:
        said = "no recipe ful; did you mean `full`? `mu recipes` lists all"
        with pytest.raises(RecipeError, match=f"^{re.escape(said)}$"):
            load_recipe("ful")

    def test_folder_is_no_recipe(self) -> None:
        Path("folder").mkdir()
        with pytest.raises(RecipeError, match="folder is a folder"):
            load_recipe("folder")

    def test_binary_file_is_one_line(self) -> None:
        Path("x.yaml").write_bytes(b"\xff\xfe\x00\x01")
        with pytest.raises(RecipeError) as caught:
            load_recipe("x.yaml")
        assert len(str(caught.value).splitlines()) == 1

    def test_recipe_of_another_stage(self) -> None:
        (line,) = problems("stage: finetune\nmodel:\n  head: linear\nthings: 3\n")
        assert line == "mine.yaml is a recipe for `mu finetune`, not for `mu pretrain`"

    def test_recipe_of_no_stated_stage_is_taken_for_the_verb_that_reads_it(self) -> None:
        Path("mine.yaml").write_text("train:\n  epochs: 3\n")
        assert load_recipe("mine.yaml").stage == stage_of("mine.yaml") == "pretrain"
        assert load_recipe("mine.yaml", (), FinetuneRecipe).train.epochs == 3

    def test_pretraining_recipe_given_to_another_verb(self) -> None:
        Path("mine.yaml").write_text("base: demo\n")
        with pytest.raises(RecipeError) as caught:
            load_recipe("mine.yaml", (), FinetuneRecipe)
        assert str(caught.value) == "mine.yaml is a recipe for `mu pretrain`, not for `mu finetune`"

    def test_stage_nobody_knows(self) -> None:
        assert problems("stage: dance\n") == ["mine.yaml:1: stage: 'dance' is none of: pretrain"]


@pytest.mark.usefixtures("here")
class TestValues:
    def load(self, text: str, *overrides: str) -> PretrainRecipe:
        Path("mine.yaml").write_text(text)
        return load_recipe("mine.yaml", overrides)

    def test_numbers_as_people_write_them(self) -> None:
        recipe = self.load(
            "optim:\n  peak_lr: 2e-4\n  warmup_lr: 1.0e-5\n  weight_decay: 1\ntrain:\n  epochs: 3\n"
        )
        assert recipe.optim.peak_lr == 2e-4
        assert recipe.optim.weight_decay == 1.0
        assert isinstance(recipe.optim.weight_decay, float)
        assert isinstance(recipe.train.epochs, float)

    def test_no_is_a_precision_and_a_truth_value(self) -> None:
        recipe = self.load("train:\n  precision: no\n  tensorboard: no\n")
        assert recipe.train.precision == "no"
        assert recipe.train.tensorboard is False

    def test_overrides_are_yaml_and_the_last_wins(self) -> None:
        recipe = self.load(
            "", "optim.peak_lr=1e-3", "optim.peak_lr=2e-3", "data.valid=", "name=2024",
            "data.sections=[findings, impression]", "train.precision=no", "data.shards=/a=b",
        )  # fmt: skip
        assert recipe.optim.peak_lr == 2e-3
        assert recipe.data.sections == ("findings", "impression")
        assert (recipe.data.valid, recipe.name, recipe.train.precision) == ("", "2024", "no")
        assert recipe.data.shards == "/a=b"

    def test_override_mends_a_wrong_value(self) -> None:
        assert self.load("optim:\n  peak_lr: fast\n", "optim.peak_lr=1e-3").optim.peak_lr == 1e-3

    def test_empty_recipe_and_empty_sections_are_the_defaults(self) -> None:
        assert self.load("") == dataclasses.replace(PretrainRecipe(), name="mine")
        assert self.load("# nothing\ndata:\nmodel:\n  vit:\n") == self.load("")

    def test_name_is_the_files_unless_given(self) -> None:
        assert self.load("").name == "mine"
        assert self.load("name: other\n").name == "other"

    def test_resolved_recipe_loads_back_equal(self) -> None:
        recipe = self.load(
            "name: 'no'\noptim: {peak_lr: 1e-7, warmup_lr: 3.3e-9}\ndata: {sections: [findings], valid: ''}\n"
        )
        Path("again.yaml").write_text(dump_recipe(recipe))
        again = load_recipe("again.yaml")
        assert again == recipe

    def test_a_key_of_an_earlier_version_names_the_new_one_and_is_read_from_a_run(self) -> None:
        text = "stage: finetune\ntrain: {validate_every: 7}\n"
        Path("recipe.yaml").write_text(text)
        with pytest.raises(
            RecipeError, match=r"recipe.yaml:2: train.validate_every is now called train.valid_every"
        ):
            load_recipe("recipe.yaml", schema=FinetuneRecipe)
        with pytest.raises(RecipeError, match=r"now called train\.valid_every"):
            load_recipe("finetune-demo", ["train.validate_every=7"], schema=FinetuneRecipe)
        assert load_saved(Path("recipe.yaml"), FinetuneRecipe).train.valid_every == 7


@pytest.mark.usefixtures("here")
class TestBase:
    def test_only_what_differs_is_stated(self) -> None:
        Path("mine.yaml").write_text("base: full\nobjectives:\n  tig: 0.5\n")
        mine, full = load_recipe("mine.yaml"), load_recipe("full")
        assert mine == dataclasses.replace(
            full, name="mine", objectives=dataclasses.replace(full.objectives, tig=0.5)
        )

    def test_base_beside_the_recipe_and_a_base_of_a_base(self) -> None:
        Path("deep").mkdir()
        Path("deep/one.yaml").write_text("train: {seed: 1, steps: 1, keep: 1}\n")
        Path("deep/two.yaml").write_text("base: one.yaml\ntrain: {steps: 2, keep: 2}\n")
        Path("deep/three.yaml").write_text("base: two.yaml\ntrain: {keep: 3}\n")
        train = load_recipe("deep/three.yaml").train
        assert (train.seed, train.steps, train.keep) == (1, 2, 3)

    def test_mistakes_of_both_files_have_their_own_lines(self) -> None:
        Path("one.yaml").write_text("train:\n  seed: x\n")
        assert problems("base: one.yaml\ntrain:\n  steps: y\n") == [
            "one.yaml:2: train.seed: expected a whole number, not 'x'",
            "mine.yaml:3: train.steps: expected a whole number, not 'y'",
        ]

    @pytest.mark.parametrize("base", ["mine.yaml", "./mine.yaml"])
    def test_circle(self, base: str) -> None:
        assert problems(f"base: {base}\n") == [f"mine.yaml:1: base: {base} leads back to itself"]

    def test_unknown_base(self) -> None:
        (line,) = problems("name: x\nbase: ful\n")
        assert line.startswith("mine.yaml:2: base: no recipe ful; did you mean `full`?")

    def test_base_of_another_stage(self) -> None:
        Path("probe.yaml").write_text("stage: finetune\n")
        (line,) = problems("base: probe.yaml\n")
        assert "`mu finetune`" in line


@dataclass(frozen=True)
class Inner:
    rates: tuple[Annotated[float, Bounds(0, 1)], ...] = (0.5,)
    most: int | None = None
    size: Literal[1, 2] = 1


@dataclass(frozen=True)
class Other:
    stage: Literal["finetune"] = "finetune"
    name: str = ""
    inner: Inner = field(default_factory=Inner)

    def problems(self) -> Iterator[tuple[str, str]]:
        return iter(())


@pytest.mark.usefixtures("here")
def test_schema_of_another_stage() -> None:
    Path("o.yaml").write_text("stage: finetune\ninner: {rates: [1e-2, 1], most: 3, size: 2}\n")
    assert load_recipe("o.yaml", (), Other) == Other(name="o", inner=Inner((0.01, 1.0), 3, 2))
    assert load_recipe("o.yaml", ("inner.most=null",), Other).inner.most is None
    with pytest.raises(RecipeError, match=r"-o inner\.rates=\[0, 2\]: '2' is out of range"):
        load_recipe("o.yaml", ("inner.rates=[0, 2]",), Other)
    with pytest.raises(RecipeError, match="is a recipe for `mu finetune`"):
        load_recipe("o.yaml")


@pytest.mark.usefixtures("here")
def test_file_in_the_way_of_a_shipped_name_wins() -> None:
    Path("demo").write_text("name: mine\n")
    assert load_recipe("demo").name == "mine"
    assert find_recipe("full").name == "full.yaml"


@pytest.mark.usefixtures("here")
def test_any_recipe_is_read_by_the_stage_it_states() -> None:
    Path("f.yaml").write_text("stage: finetune\n")
    Path("g.yaml").write_text("base: f.yaml\nmodel: {head: linear}\n")
    assert isinstance(load_any("full"), PretrainRecipe)
    grown = load_any("g.yaml", ("train.epochs=2",))
    assert isinstance(grown, FinetuneRecipe)
    assert (grown.model.head, grown.train.epochs) == ("linear", 2)
    Path("h.yaml").write_text("stage: dance\n")
    with pytest.raises(RecipeError, match=r"^h\.yaml:1: stage: 'dance' is none of: pretrain, "):
        load_any("h.yaml")
