"""`train.compile` in a whole run: the same numbers, and what the run says about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from medunifier_cli.stages import running
from medunifier_cli.train.compiling import compiled, missing
from tests.run.test_resume import final_state


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No graph of another test, and the compiler without its last step, which would round otherwise."""
    monkeypatch.setattr(running, "compiled", partial(compiled, backend="eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def call(root: Path, *arguments: object) -> Result:
    words = [str(word) for word in arguments]
    return CliRunner().invoke(mu, words, env={"MU_RUNS": str(root / "runs")}, catch_exceptions=False)


@pytest.mark.skipif(missing("cpu") != "", reason=missing("cpu"))
def test_a_compiled_run_logs_saves_and_measures_what_any_other_does(
    tmp_path: Path, recipe: Path, shards: Path
) -> None:
    settings = ("-o", f"data.shards={shards}", "-o", "data.workers=0", "-o", "train.steps=3")
    settings = (*settings, "-o", "train.valid_every=2")
    say = {}
    for choice in ("never", "always"):
        compile_it = ("-o", f"train.compile={choice}")
        done = call(tmp_path, "pretrain", recipe, "--name", choice, *settings, *compile_it)
        assert done.exit_code == 0, done.output
        say[choice] = done.output
    runs = {choice: tmp_path / "runs" / choice for choice in say}
    assert final_state(runs["never"]) == final_state(runs["always"])
    assert ", compiled in the first step" in say["always"]
    assert ", compiled" not in say["never"]
    starts = {c: json.loads((run / "provenance.json").read_text())["starts"] for c, run in runs.items()}
    assert [starts[choice][0]["compiled"] for choice in runs] == [False, True]
    # one that cannot be compiled any more goes on without
    again = call(tmp_path, "pretrain", recipe, "--name", "always", *settings, "-o", "train.compile=never")
    assert again.exit_code == 0, again.output
    assert "is complete" in again.output
