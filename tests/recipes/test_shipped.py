"""Every shipped recipe loads, builds and states what it claims; the paper's figures stand here once more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.recipe.load import (
    dump_recipe,
    load_any,
    load_recipe,
    shipped_recipes,
    stage_of,
)
from medunifier_cli.recipe.schema import PretrainRecipe
from tests.folders import ROOT

FOLDER = ROOT / "recipes"
BERT_VOCABULARY = 30522


PRETRAIN = [name for name in shipped_recipes() if stage_of(name) == "pretrain"]

WEIGHTS = {  # paper: table 6 (IDs 1 to 5) and appendix table 1 (IDs 6 and 7): itc, itm, itg, tig
    "itc": (1, 0, 0, 0),
    "itc-itm": (1, 1, 0, 0),
    "itc-itm-itg": (1, 1, 1, 0),
    "itc-itm-tig": (1, 1, 0, 1),
    "full": (1, 1, 1, 1),
    "one-gpu": (1, 1, 1, 1),
    "tig-0.8": (1, 1, 1, 0.8),
    "tig-1.2": (1, 1, 1, 1.2),
    "small": (1, 1, 1, 300),  # a mean over pixels hardly reaches the encoders otherwise
    "demo": (1, 1, 2, 1),  # a short run learns reports last
    "demo-fine": (1, 1, 2, 100),
}
PARTS = {
    "itc": ("image_head", "text_head"),
    "itm": ("match_head",),
    "itg": ("word_head",),
    "tig": ("generator",),
}


@cache
def built(name: str) -> nn.Module:
    """The model of a recipe, without memory."""
    with torch.device("meta"):
        return MedUnifier(load_recipe(name), BERT_VOCABULARY + 1, load=False)


def weights(recipe: PretrainRecipe) -> tuple[float, ...]:
    chosen = recipe.objectives
    return (chosen.itc, chosen.itm, chosen.itg, chosen.tig)


def test_each_file_of_the_folder_ships_and_each_pretraining_recipe_has_a_claim() -> None:
    assert shipped_recipes() == sorted(path.stem for path in FOLDER.glob("*.yaml"))
    assert set(PRETRAIN) == set(WEIGHTS)


@pytest.mark.parametrize("name", shipped_recipes())
def test_loads_by_name_and_by_path_and_back_from_its_resolved_text(name: str, tmp_path: Path) -> None:
    recipe = load_any(name)
    assert recipe == load_any(FOLDER / f"{name}.yaml")
    assert recipe.name == name
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_any(tmp_path / "recipe.yaml") == recipe


@pytest.mark.parametrize("name", PRETRAIN)
def test_objectives_have_the_weights_of_the_papers_table(name: str) -> None:
    assert weights(load_recipe(name)) == WEIGHTS[name]


@pytest.mark.parametrize("name", PRETRAIN)
def test_what_is_off_is_not_built(name: str) -> None:
    parts = dict(built(name).named_children())
    for weight, heads in zip(WEIGHTS[name], PARTS.values(), strict=True):
        for head in heads:
            assert (head in parts) == (weight > 0), head


@pytest.mark.parametrize("name", sorted(set(WEIGHTS) - {"demo", "demo-fine", "full", "one-gpu", "small"}))
def test_ablation_states_nothing_but_its_objectives(name: str) -> None:
    stated = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(stated) == {"base", "objectives"}
    assert stated["base"] == "full"
    assert set(stated["objectives"]) <= {"itc", "itm", "itg", "tig"}


PAPER: dict[str, Callable[[PretrainRecipe], object]] = {
    "224": lambda r: r.data.image_size,
    "95": lambda r: r.text.max_tokens,
    "microsoft/BiomedVLP-CXR-BERT-general": lambda r: r.text.tokenizer,
    "12": lambda r: r.model.qformer.layers,
    "768": lambda r: r.model.qformer.width,
    "32": lambda r: r.model.qformer.queries,
    "1": lambda r: r.model.qformer.cross_attention_every,
    "True": lambda r: r.model.vit.frozen,
    "none": lambda r: r.model.vit.pixel_norm,
    "(512, 768)": lambda r: (r.model.generator.codebook_size, r.model.generator.code_width),
    "0.5": lambda r: r.model.generator.beta,
    "256": lambda r: r.objectives.embed_width,
    "0.07": lambda r: r.objectives.temperature,
    "hard": lambda r: r.objectives.itm_negatives,
    "0.0": lambda r: r.objectives.itc_smoothing,
    "(0.9, 0.95)": lambda r: (r.optim.beta1, r.optim.beta2),
    "0.05": lambda r: r.optim.weight_decay,
    "(0.0001, 1e-05)": lambda r: (r.optim.peak_lr, r.optim.warmup_lr),
    "(0.05,)": lambda r: (r.optim.warmup,),
    "bf16": lambda r: r.train.precision,
    "4": lambda r: r.train.processes,
}
"""What section 4.1 and appendix 2 of the paper say -> where the recipe says it."""


@pytest.mark.parametrize("said", PAPER)
def test_full_is_the_paper(said: str) -> None:
    assert str(PAPER[said](load_recipe("full"))) == said


SHAPES_NUMBERS = ("text", "model", "objectives", "optim")
"""Sections all of whose keys change what a run comes to."""
GIVEN = {
    "text": {"tokenizer", "vocabulary", "max_tokens", "drop"},
    "vit": {"name", "weights", "frozen", "patch_size", "width", "depth", "heads", "pixel_norm",
            "position_std", "stem"},
    "qformer": {"weights", "layers", "width", "heads", "queries", "cross_attention_every",
                "embedding_std"},
    # where the paper has nothing of the kind, the value is that of having none
    "generator": {"codebook_size", "code_width", "codebook", "beta", "norm", "position_scale",
                  "rate_scale"},
    "objectives": {"itc", "itm", "itg", "tig", "embed_width", "embed_norm", "temperature",
                   "itc_smoothing", "itm_negatives"},
    "optim": {"peak_lr", "warmup_lr", "warmup", "beta1", "beta2", "weight_decay"},
}  # fmt: skip
"""Keys whose value the paper gives, by section."""
OF_THE_MODEL = {"patch_size", "width", "depth", "heads", "position_std"}
"""Keys of `vit` that are left at 0, for the values of the named model."""


def test_full_leaves_nothing_that_shapes_its_numbers_to_defaults() -> None:
    stated = yaml.safe_load((FOLDER / "full.yaml").read_text())
    resolved = yaml.safe_load(dump_recipe(load_recipe("full")))
    for section in SHAPES_NUMBERS:
        parts = resolved[section]
        for name, value in parts.items():
            assert name in stated[section], f"{section}.{name}: write it into full.yaml, and mark it"
            if isinstance(value, dict):
                left = set(value) - set(stated[section][name]) - (OF_THE_MODEL if name == "vit" else set())
                assert not left, f"{section}.{name}: write them into full.yaml, and mark them"


def test_full_marks_each_value_that_the_paper_does_not_give() -> None:
    section, marked = "", set()
    for line in (FOLDER / "full.yaml").read_text().splitlines():
        key, _, rest = line.strip().partition(":")
        value, _, comment = rest.partition("#")
        if not key.startswith("#") and key and not value.strip():
            section = key
        elif "not in the paper" in comment or "differs from the paper" in comment:
            marked.add((section, key))
    resolved = yaml.safe_load(dump_recipe(load_recipe("full")))
    sections = {name: resolved["model"].get(name, resolved.get(name)) for name in GIVEN}
    for name, values in sections.items():
        for key in values:
            given = key in GIVEN[name]
            # weight decay: the paper gives the value, and not what is left out of it
            if key != "weight_decay":
                assert ((name, key) in marked) != given, f"{name}.{key}"


def test_full_has_the_shapes_of_the_paper() -> None:
    model = built("full")
    assert model.vit.width == 1408
    assert model.vit.tokens == 257
    assert model.vit.patch_size == 14
    assert len(model.vit.vit.blocks) == 39  # 40 less the last one, as the authors' code
    assert not any(parameter.requires_grad for parameter in model.vit.parameters())


def test_one_gpu_has_the_papers_maps_around_a_smaller_encoder() -> None:
    one, full = load_recipe("one-gpu"), load_recipe("full")
    model = built("one-gpu")
    assert (model.vit.width, model.vit.tokens, model.vit.patch_size) == (768, 257, 14)
    assert one.train.micro_batch == one.train.global_batch, "ITC and ITM contrast the pairs of one pass"
    assert (one.train.processes, one.data.image_size) == (1, 224)
    assert (one.model.qformer, one.model.generator) == (full.model.qformer, full.model.generator)


def test_demo_is_small_and_of_the_same_method() -> None:
    demo, full = load_recipe("demo"), load_recipe("full")
    assert sum(parameter.numel() for parameter in built("demo").parameters()) < 20e6
    assert (demo.data.dataset, demo.data.image_size, demo.train.processes) == ("phantom", 64, 1)
    assert full.model.generator.beta == 0.5  # paper, equation 23; the demo's own is smaller
    assert demo.model.qformer.cross_attention_every == full.model.qformer.cross_attention_every
    assert (demo.optim.beta1, demo.optim.beta2) == (full.optim.beta1, full.optim.beta2)
    assert demo.train.precision == "no"
