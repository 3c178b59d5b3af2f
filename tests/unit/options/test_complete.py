"""What the shell offers while a command is typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from medunifier_cli import cli
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from tests.miniatures.results import write_run


@pytest.fixture
def home(own_roots: Path) -> Path:
    """One run, one prepared data set."""
    write_run(own_roots / "runs", "base", dump_recipe(load_recipe("demo")), [])
    (own_roots / "data" / "shards" / "mine").mkdir(parents=True)
    (own_roots / "data" / "shards" / "mine" / "manifest.json").write_text("{}", encoding="utf-8")
    return own_roots


def offered(*words: str) -> list[str]:
    """What is offered for the last word, names alone."""
    completion = ShellComplete(cli.mu, {}, "mu", "_MU_COMPLETE")
    items = completion.get_completions(list(words[:-1]), words[-1])
    return [item.value for item in items if item.type == "plain"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sy",), ["synthesize"]),
        (("show", "ba"), ["base"]),
        (("score", ""), ["base"]),
        (("retrieve", "--run", "b"), ["base"]),
        (("retrieve", "--run", "x"), []),
        (("zeroshot", "--data", ""), ["mine"]),
        (("pretrain", "one"), ["one-gpu"]),
        (("pretrain", "probe"), []),
        (("finetune", "probe"), ["probe-demo"]),
        (
            ("recipes", "pri"),
            ["prior", "prior-demo", "prior-masked", "prior-masked-demo", "prior-masked-fine"],
        ),
        (("prepare", "mim"), ["mimic-cxr"]),
        (("pretrain", "demo", "-o", "train.st"), ["train.steps="]),
        (("recipes", "prior-demo", "-o", "prior.cond"), ["prior.condition="]),
        (("pretrain", "demo", "-o", "train.steps=1"), []),
        (("runs", "--format", "m"), ["markdown"]),
    ],
)
def test_names_are_offered(home: Path, words: tuple[str, ...], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_runs_come_with_their_stage(home: Path) -> None:
    completion = ShellComplete(cli.mu, {}, "mu", "_MU_COMPLETE")
    assert [item.help for item in completion.get_completions(["show"], "base") if item.type == "plain"] == [
        "pretrain"
    ]


def test_without_runs_and_data_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert offered("show", "") == offered("zeroshot", "--data", "") == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_each_shell_has_a_script(shell: type[ShellComplete], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BashComplete, "_check_version", lambda *_: None)
    assert "_MU_COMPLETE" in shell(cli.mu, {}, "mu", "_MU_COMPLETE").source()
