"""A run that was killed, stopped or interrupted ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from medunifier_cli.checkpoint import store

Start = Callable[..., subprocess.Popen[str]]
Mu = Callable[..., tuple[int, str]]


def final_state(run: Path) -> dict[str, object]:
    """Hashes of the last checkpoint's tensors, and the logged numbers without their clock times."""
    last = run / "checkpoints" / f"step-{store.steps(run / 'checkpoints')[-1]:08d}"
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(last.glob("*.safetensors"))
    }
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        "step": last.name,
        "tensors": hashes,
        "log": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
    }


def steps_logged(run: Path) -> int:
    """Last step in a run's log, 0 before there is one."""
    log = run / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines and lines[-1].endswith("}") else 0


def being_written(run: Path) -> bool:
    """Whether a checkpoint is being written now."""
    return any((run / "checkpoints").glob(".writing-*")) if (run / "checkpoints").is_dir() else False


def kill_once(start: Start, arguments: list[object], run: Path, draw: random.Random) -> bool:
    """Start, and kill all processes some steps on, or in the middle of a write; True if they still ran."""
    process = start(*arguments)
    ahead = steps_logged(run) + draw.randint(0, 2)
    in_write = draw.random() < 0.4
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        done = steps_logged(run)
        if done > ahead and (not in_write or being_written(run) or done > ahead + 2):
            break
        time.sleep(0.002)
    time.sleep(draw.choice((0.0, draw.uniform(0.0, 0.1))))
    hit = process.poll() is None
    if hit:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return hit


def compare_with_undisturbed(
    start: Start, mu: Mu, recipe: Path, shards: Path, runs: Path, ranks: int, kills: int, steps: int
) -> None:
    same = ["pretrain", recipe, "--num-processes", ranks]
    for override in (f"data.shards={shards}", "train.keep=1", f"train.steps={steps}"):
        same += ["-o", override]
    code, printed = mu(*same, "--run", "calm")
    assert code == 0, printed
    draw = random.Random(ranks)
    hits = sum(kill_once(start, [*same, "--run", "killed"], runs / "killed", draw) for _ in range(kills))
    assert hits == kills, "the run ended before it was killed often enough; give it more steps"
    code, printed = mu(*same, "--run", "killed")
    assert code == 0, printed
    assert final_state(runs / "killed") == final_state(runs / "calm")
    assert [path.name for path in (runs / "killed" / "checkpoints").iterdir()] == [f"step-{steps:08d}"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_run_ends_bit_equal(
    start: Start, mu: Mu, recipe: Path, shards: Path, tmp_path: Path, ranks: int
) -> None:
    compare_with_undisturbed(start, mu, recipe, shards, tmp_path / "runs", ranks, kills=3 - ranks, steps=14)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_kills(start: Start, mu: Mu, recipe: Path, shards: Path, tmp_path: Path, ranks: int) -> None:
    compare_with_undisturbed(start, mu, recipe, shards, tmp_path / "runs", ranks, kills=20, steps=140)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signal_saves_one_checkpoint_and_exits_75(
    start: Start, mu: Mu, recipe: Path, shards: Path, tmp_path: Path, name: str
) -> None:
    ranks = 2 if name == "SIGTERM" else 1
    same = [
        "pretrain",
        recipe,
        "-o",
        f"data.shards={shards}",
        "-o",
        "train.steps=400",
        "-o",
        "train.checkpoint_every=400",
    ]
    same += ["--num-processes", ranks]
    process = start(*same)
    log = tmp_path / "runs" / "small" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert f"stopped by {name}" in printed
    saved = store.steps(tmp_path / "runs" / "small" / "checkpoints")
    assert len(saved) == 1
    assert store.load(tmp_path / "runs" / "small" / "checkpoints" / f"step-{saved[0]:08d}").step == saved[0]


def test_two_ranks_really_run(mu: Mu, recipe: Path, shards: Path, tmp_path: Path) -> None:
    code, printed = mu(
        "pretrain", recipe, "-o", f"data.shards={shards}", "--num-processes", 2, "-o", "train.steps=2"
    )
    assert code == 0, printed
    assert "contrast within 8 pairs; 2 steps of 8 on 2 cpu processes" in printed
    assert "FutureWarning" not in printed
    checkpoint = store.newest(tmp_path / "runs" / "small" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.facts["ranks"] == 2
    assert set(checkpoint.tensors["rng"]) == {"cpu.0", "cpu.1"}


def test_ranks_change_no_loss(mu: Mu, recipe: Path, shards: Path, tmp_path: Path) -> None:
    """The first steps of one rank and of two agree to rounding: same samples, same negatives, same losses."""
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "train.steps=4"]
    same += ["-o", "model.qformer.dropout=0"]  # each rank draws its own dropout
    for name, ranks, micro in (("one", 1, 8), ("two", 2, 4)):
        code, printed = mu(*same, "--run", name, "--num-processes", ranks, "-o", f"train.micro_batch={micro}")
        assert code == 0, printed
    logs = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for one, two in zip(*logs, strict=True):
        if one["event"] == "train":
            for loss in ("itc", "itm", "itg", "tig"):
                assert one[loss] == pytest.approx(two[loss], rel=2e-3), (one["step"], loss)
