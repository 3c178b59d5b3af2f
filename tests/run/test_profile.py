"""`mu pretrain --profile`, typed beside a run that is half done: the run is as it was, and trains on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medunifier_cli.roots import newest_run
from tests.run.test_resume import final_state, in_this_process


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_profile_is_printed_and_leaves_the_run_as_it_was(
    tmp_path: Path, shards: Path, recipe: Path
) -> None:
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "train.steps=2", "--name", "one"]
    in_this_process(tmp_path / "runs", *same)
    run = tmp_path / "runs" / "one"
    before, state = files(run), final_state(run)
    printed = in_this_process(tmp_path / "runs", *same, "--profile").splitlines()
    after = files(run)
    assert {name: after[name] for name in after if name != "profile/trace.json"} == before
    assert final_state(run) == state
    assert printed[-1] == f"trace, for Perfetto or chrome://tracing: {run / 'profile' / 'trace.json'}"
    names = {e["name"] for e in json.loads(after["profile/trace.json"])["traceEvents"] if "name" in e}
    assert {
        "mu: image encoder",
        "mu: Q-Former, texts",
        "mu: decoder",
        "mu: ITC loss",
        "mu: optimiser",
    } <= names
    header = next(number for number, line in enumerate(printed) if line.startswith("part "))
    table = printed[header + 1 : printed.index("", header)]
    # a long name takes a second line, without a share
    shares = [float(line.split()[-1].rstrip("%")) for line in table if line.endswith("%")]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert any("backward" in line for line in table)
    assert "part " in printed[header]


def test_without_a_run_there_is_none_afterwards(
    tmp_path: Path, shards: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "train.steps=2", "--name", "new"]
    in_this_process(tmp_path / "runs", *same, "--profile")
    run = tmp_path / "runs" / "new"
    assert list(files(run)) == ["profile/trace.json"]
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "runs"))
    assert newest_run(lambda folder: True, "score") == run, "a folder it is"
    assert not (run / "checkpoints").exists()
    in_this_process(tmp_path / "runs", *same, "--fresh")
    assert (run / "checkpoints").is_dir()
    assert set(files(tmp_path / "runs" / "new.old-1")) == {".lock", "profile/trace.json"}
