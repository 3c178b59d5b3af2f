"""Which run a command uses when none, a name or a path is given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medunifier_cli import roots
from medunifier_cli.errors import CheckpointError, MuError


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs trained in turn; the last holds no checkpoint; the first got results late."""
    root = tmp_path / "runs"
    for time, name in enumerate(["first", "second", "empty"], start=1):
        folder = root / name
        folder.mkdir(parents=True)
        signs = [folder / "log.jsonl"]
        signs[0].write_text("{}\n")
        if name != "empty":
            (folder / "checkpoints").mkdir()
            signs.append(folder / "checkpoints")
        for sign in signs:
            os.utime(sign, (1000 * time, 1000 * time))
    (root / "first" / "results").mkdir()
    monkeypatch.setenv("MU_RUNS", str(root))
    return root


def trained(run: Path) -> bool:
    return (run / "checkpoints").is_dir()


def test_newest_suitable_run_is_used_and_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert roots.newest_run(trained, "retrieve") == runs / "second"
    assert str(runs / "second") in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "needed"), [("retrieve", "pretrain"), ("synthesize", "fit-prior")])
def test_no_suitable_run_says_what_to_do_first(runs: Path, verb: str, needed: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        roots.newest_run(lambda run: False, verb)
    assert str(caught.value) == f"no run found under {runs}/ that fits `{verb}`: it needs `mu {needed}` first"


def test_no_runs_folder_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="it needs `mu pretrain` first"):
        roots.newest_run(trained, "zeroshot")


def test_run_by_name_and_by_path(runs: Path) -> None:
    assert roots.find_run("first") == runs / "first"
    assert roots.find_run(runs / "second") == runs / "second"


def test_a_folder_that_is_no_run_is_not_taken_for_one(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="demo"):
        roots.find_run("demo")
    (tmp_path / "demo" / "recipe.yaml").write_text("stage: pretrain\n")
    assert roots.find_run("demo") == Path("demo")


def test_unknown_run_offers_the_nearest(runs: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run `secnd` under .* did you mean `second`"):
        roots.find_run("secnd")


@pytest.mark.parametrize("name", ["demo", "probe 2", "lauf-ä", "it's", "a.b", "..x", "50%", "x" * 100])
def test_a_name_of_a_run_is_any_word(name: str) -> None:
    assert roots.check_run_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", " ", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "-x", "--fresh", " x", "a\nb", "a\rb", "a\tb",
        "x ", "a\0b", "a\x1b[2Jb", "a\u2028b", "a\u202eb", "\ud800", "x" * 101, "\U0001f480" * 60,
    ],
)  # fmt: skip
def test_a_name_that_would_lead_elsewhere_or_add_lines_is_refused(name: str) -> None:
    with pytest.raises(MuError) as caught:
        roots.check_run_name(name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_defaults_are_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MU_DATA", raising=False)
    monkeypatch.delenv("MU_RUNS", raising=False)
    assert roots.raw_folder("open-i") == Path("data/raw/open-i")
    assert roots.shards_folder("open-i") == Path("data/shards/open-i")
    assert roots.runs_root() == Path("runs")


def test_roots_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path))
    assert roots.shards_folder("open-i") == tmp_path / "shards" / "open-i"
