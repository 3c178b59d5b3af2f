"""Options of several verbs: one meaning everywhere, old names still work, none is without effect."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from medunifier_cli import cli
from medunifier_cli.errors import MuError
from medunifier_cli.options import shared
from medunifier_cli.options.training import name_of_new, used_and_made
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.terminal.output import FORMATS, form, quiet, verbose
from medunifier_cli.terminal.say import say, show
from tests.miniatures.results import result, write_run

VERBS = cli.VERBS


def mu(*args: str) -> Result:
    return CliRunner().invoke(cli.mu, list(args))


def command(verb: str) -> click.Command:
    found = cli.mu.get_command(click.Context(cli.mu), verb)
    assert found is not None
    return found


def option(verb: str, name: str) -> click.Option | None:
    options = [param for param in command(verb).params if name in param.opts]
    return options[0] if options and isinstance(options[0], click.Option) else None


@pytest.fixture
def runs(own_roots: Path) -> Path:
    """A pre-training run with two numbers, and a fine-tuned one."""
    root = own_roots / "runs"
    numbers = [result("zeroshot phantom test", {"zero-shot accuracy": 1 / 3, "zero-shot auroc": 0.75})]
    write_run(root, "base", dump_recipe(load_recipe("demo")), numbers)
    tuned = load_recipe("finetune-demo", ["model.pretrained=base"], FinetuneRecipe)
    write_run(root, "tuned", dump_recipe(tuned), [])
    return root


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_in_each_format_and_may_be_quiet(verb: str) -> None:
    chosen = option(verb, "--format")
    assert chosen is not None
    assert tuple(chosen.type.choices) == FORMATS  # type: ignore[attr-defined]
    assert option(verb, "--quiet") is not None
    assert option(verb, "-v") is not None


@pytest.mark.parametrize("verb", VERBS)
def test_run_is_used_and_name_is_made(verb: str) -> None:
    used, made = option(verb, "--run"), option(verb, "--name")
    if used is not None and not used.hidden:
        assert "use" in (used.help or "")
    if made is not None:
        assert "new" in (made.help or "") or verb == "prepare"
    trains = verb in cli.TRAINING
    assert (made is not None) == (trains or verb == "prepare")
    computes = trains or verb in cli.MODEL_VERBS or verb == "score"
    assert (option(verb, "--device") is not None) == computes
    assert (option(verb, "--batch-size") is not None) == (verb in cli.MODEL_VERBS)
    assert (option(verb, "--dry-run") is not None) == (trains or verb in ("prepare", "synthesize"))


def test_numbers_have_all_digits_for_programs_and_three_for_people(runs: Path) -> None:
    (row, _) = json.loads(mu("score", "base", "--format", "json").stdout)
    assert row["base"] == 1 / 3
    assert row["baseline"] is None
    assert repr(1 / 3) in mu("score", "--run", "base", "--format", "csv").stdout
    assert "| 0.333 |" in " ".join(mu("score", "base", "--format", "markdown").stdout.split())
    assert form() == "text", "the choice ends with the verb"


@pytest.mark.parametrize("wrong", [["--format", "json", "--seed", "x"], ["--format", "yaml"]])
def test_a_choice_ends_with_a_usage_error_too(wrong: list[str]) -> None:
    assert mu("-q", "score", *wrong).exit_code == 2
    assert (form(), quiet(), verbose()) == ("text", False, False)


def test_quiet_leaves_results_warnings_and_errors(capsys: pytest.CaptureFixture[str], runs: Path) -> None:
    assert "all 2 numbers" in mu("score", "base", "--all").stderr + mu("score", "base").stderr
    assert mu("score", "-q", "base", "--all").stderr == ""
    assert mu("-q", "score", "nobody").stderr.startswith("mu: no run `nobody`")
    both = mu("runs", "-q", "-v")
    assert both.exit_code == 2
    assert "exclude each other" in both.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_VERBOSITY", "quiet")
        say("a note")
        say("warning: careful")
        say("an error", always=True)
        show("a result")
        show("where it is", err=True)
    assert capsys.readouterr() == ("a result\n", "mu: warning: careful\nmu: an error\n")


def test_verbose_says_what_it_took(runs: Path) -> None:
    assert "mu: runs took 0:0" in mu("runs", "-v").stderr
    assert "took" not in mu("runs").stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report", "x.png", "--split", "test"], "--split is for a split, not for files"),
        (["report", "--beams", "2", "--sample", "nucleus"], "--beams is for --sample beam"),
        (["report", "--seed", "2"], "--seed is for --sample nucleus"),
        (["retrieve", "--top", "3"], "--top is for the gallery"),
        (["retrieve", "--no-likeness"], "--likeness is for the film of --image"),
        (["retrieve", "x.png"], "got unexpected extra argument (x.png); did you mean --image x.png?"),
        (["retrieve", "--image", "x.png", "y.png"], "got unexpected extra argument (y.png)"),
        (["zeroshot", "--save-prompts", "p.yaml", "--seed", "1"], "--seed has no effect on --save-prompts"),
        (["synthesize", "--reconstruct", "--guidance", "2"], "--guidance is for synthetic images"),
        (
            ["synthesize", "--edit", __file__, "--prompt", "p", "--batch-size", "2"],
            "--batch-size is for many images",
        ),
        (["score", "base", "--page", "--seed", "1"], "--seed has no effect on --page"),
        (["score", "base", "--clinical"], "reports are scored with --reports FILE"),
        (["score", "--fake", "x", "--copies", "--images", "5"], "--images is for --real"),
        (["score", "base", "--all", "--baselines"], "--baselines are rows of the paper's tables"),
        (["prepare", "--list", "--size", "64"], "--size has no effect on --list"),
        (["prepare", "--features", "demo", "--dry-run"], "--dry-run is for shards"),
        (["pretrain", "demo", "--dry-run", "--sbatch"], "nothing to try with --dry-run"),
        (["synthesize", "--dry-run", "--sbatch"], "nothing to try with --dry-run"),
        (["synthesize", "x.png", "--reconstruct", "--dry-run"], "--dry-run tells of many images"),
        (["pretrain", "demo", "--profile", "--format", "json"], "--format is for training"),
        (["pretrain", "demo", "--name", "a", "--run", "b"], "--run is the old spelling of --name"),
        (["finetune", "probe-demo", "--from", "a", "--run", "b", "--name", "c"], "the old spelling of --run"),
        (["recipes", "--copy", "a.yaml"], "--copy is for one recipe"),
        (["recipes", "demo", "--copy", "a.yaml", "-o", "train.seed=1"], "-o has no effect on --copy"),
        (["report", "--device", "tpu"], "is none of auto, cpu, cuda"),
        (["report", "--device", "cpu:1"], "is none of auto, cpu, cuda"),
    ],
)
def test_an_option_without_effect_is_a_usage_error(runs: Path, args: list[str], words: str) -> None:
    done = mu(*args)
    assert done.exit_code == 2, done.output
    assert words in done.stderr.splitlines()[-1]


def test_the_name_of_a_new_run_has_one_old_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    assert (name_of_new("new", ""), name_of_new("", "old"), name_of_new("", "")) == ("new", "old", "")
    assert capsys.readouterr().err == "mu: --run is now called --name; the old spelling still works\n"


@pytest.mark.parametrize(
    ("given", "expected", "notes"),
    [
        (("base", "", "new"), ("base", "new"), 0),
        (("base", "", ""), ("base", ""), 0),
        (("", "", "new"), ("", "new"), 0),
        (("", "base", "new"), ("base", "new"), 1),
        (("new", "base", ""), ("base", "new"), 2),
        (("tuned", "", ""), ("", "tuned"), 1),
        (("another", "", ""), ("", "another"), 1),
    ],
)
def test_run_is_what_is_used_unless_it_can_only_be_what_is_made(
    runs: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, str, str], expected: tuple[str, str],
    notes: int,
) -> None:  # fmt: skip
    assert used_and_made(*given) == expected
    assert len(capsys.readouterr().err.splitlines()) == notes


def test_a_misspelt_run_starts_nothing(runs: Path) -> None:
    with pytest.raises(MuError, match=r"did you mean `base`\? A new run is named with --name"):
        used_and_made("bas", "", "")


def test_a_run_that_is_not_there_is_not_replaced_by_the_newest_of_several(runs: Path) -> None:
    shutil.copytree(runs / "base", runs / "other")
    says = r"no run `full` under .*; --run names the run to start from \(base, other\), --name the new one"
    with pytest.raises(MuError, match=says):
        used_and_made("full", "", "")
    assert used_and_made("tuned", "", "") == ("", "tuned"), "a run of the verb resumes"


def test_a_device_is_what_the_process_and_its_children_see(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @shared.device_option
    def seen() -> None:
        click.echo(os.environ.get(shared.CUDA, "none"))

    monkeypatch.delenv(shared.CUDA, raising=False)
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert CliRunner().invoke(seen, []).output == "none\n"
    assert CliRunner().invoke(seen, ["--device", "cpu"]).output == "\n"
    assert CliRunner().invoke(seen, ["--device", "cuda:1"]).output == "1\n"
    monkeypatch.setenv(shared.CUDA, "4,7")  # as SLURM gives them
    assert CliRunner().invoke(seen, ["--device", "cuda:1"]).output == "7\n"
    assert isinstance(CliRunner().invoke(seen, ["--device", "cuda:2"]).exception, MuError)
    assert os.environ[shared.CUDA] == "4,7"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = CliRunner().invoke(seen, ["--device", "cuda"]).exception
    assert "leave the option out, or say cpu" in str(error)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(runs: Path) -> None:
    before = sorted(path.relative_to(runs) for path in runs.rglob("*"))
    done = mu("finetune", "probe-demo", "--name", "new", "--run", "base", "--dry-run", "--format", "json")
    assert done.exit_code == 1
    assert "base: no checkpoint yet" in done.stderr
    facts = json.loads(mu("pretrain", "demo", "--name", "base", "--dry-run", "--format", "json",
                          "-o", "optim.peak_lr=0.5").stdout)  # fmt: skip
    assert facts["start"] == "new"
    assert facts["other settings"].startswith("optim.peak_lr was ")
    assert facts["run"] == str(runs / "base")
    assert sorted(path.relative_to(runs) for path in runs.rglob("*")) == before


def test_a_line_comes_before_torch_is_imported() -> None:
    script = (
        "import sys, time\n"
        "from medunifier_cli.terminal.first_line import announced\n"
        "with announced(lambda: 'loading the model ...'):\n"
        "    print('torch' in sys.modules)\n"
        "    import torch\n"
        "with announced(lambda: 'again'):\n"
        "    import torch.nn\n"
        "print(len([one for one in sys.meta_path if 'Announcer' in type(one).__name__]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "mu: loading the model ...\n"
    assert done.stdout.splitlines() == ["False", "0"]
