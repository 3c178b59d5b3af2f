"""A run that was killed, stopped or interrupted ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from medunifier_cli.checkpoint import store
from medunifier_cli.cli import mu as group
from medunifier_cli.run.log import without_times
from tests.warm import Warm

Process = Warm | subprocess.Popen[str]
Start = Callable[..., Process]
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
        "log": [without_times(line) for line in lines],
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


def in_this_process(runs: Path, *arguments: object) -> str:
    """One rank needs no process of its own, which costs five seconds of imports; what it printed."""
    env = {"MU_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    done = CliRunner().invoke(group, [str(word) for word in arguments], env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def compare_with_undisturbed(
    start: Start, mu: Mu, recipe: Path, shards: Path, runs: Path, ranks: int, kills: int, steps: int
) -> None:
    same = ["pretrain", recipe, "--num-processes", ranks]
    for override in (f"data.shards={shards}", "data.test=", "train.keep=1", f"train.steps={steps}"):
        same += ["-o", override]
    if ranks == 1:
        in_this_process(runs, *same, "--name", "calm")
    else:
        code, printed = mu(*same, "--name", "calm")
        assert code == 0, printed
        assert f"on {ranks} cpu processes" in printed
    calm = store.newest(runs / "calm" / "checkpoints")
    assert calm is not None
    assert calm.facts["ranks"] == ranks
    assert set(calm.tensors["rng"]) == {f"cpu.{rank}" for rank in range(ranks)}
    draw = random.Random(ranks)
    hits = sum(kill_once(start, [*same, "--name", "killed"], runs / "killed", draw) for _ in range(kills))
    assert hits == kills, "the run ended before it was killed often enough; give it more steps"
    code, printed = mu(*same, "--name", "killed")
    assert code == 0, printed
    assert final_state(runs / "killed") == final_state(runs / "calm")
    assert [path.name for path in (runs / "killed" / "checkpoints").iterdir()] == [f"step-{steps:08d}"]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_killed_run_ends_bit_equal(
    start: Start, mu: Mu, recipe: Path, shards: Path, tmp_path: Path, ranks: int
) -> None:
    compare_with_undisturbed(start, mu, recipe, shards, tmp_path / "runs", ranks, kills=3 - ranks, steps=14)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_twenty_kills(start: Start, mu: Mu, recipe: Path, shards: Path, tmp_path: Path, ranks: int) -> None:
    compare_with_undisturbed(start, mu, recipe, shards, tmp_path / "runs", ranks, kills=20, steps=140)


def signalled_in_training(
    start: Start, same: list[object], folder: Path, send: Callable[[Process], None]
) -> tuple[int, str]:
    """Start a run whose only checkpoint is that of a signal, which `send` sends once it trains."""
    process = start(
        *same, "-o", "train.steps=400", "-o", "train.checkpoint_every=400", f"-oname={folder.name}"
    )
    deadline = time.monotonic() + 240
    while steps_logged(folder) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    send(process)
    printed, _ = process.communicate(timeout=240)
    return process.returncode, printed


def check_saved(folder: Path, code: int, printed: str, name: str) -> None:
    assert code == 75, printed
    assert f"mu: stopped by {name} after step" in printed
    saved = store.steps(folder / "checkpoints")
    assert len(saved) == 1
    assert store.load(folder / "checkpoints" / f"step-{saved[0]:08d}").step == saved[0] >= 2


def ctrl_c(process: Process) -> None:
    """What a terminal does: the whole group gets the signal, and the launcher passes its own on."""
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.slow
def test_a_warning_saves_one_checkpoint_and_exits_75(
    start: Start, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    same, folder = ["pretrain", recipe, "-o", f"data.shards={shards}"], tmp_path / "runs" / "warned"
    done = signalled_in_training(start, same, folder, lambda process: process.send_signal(signal.SIGUSR1))
    check_saved(folder, *done, "SIGUSR1")


def test_one_ctrl_c_on_two_ranks_saves_one_checkpoint_and_exits_75(
    start: Start, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "--num-processes", 2]
    folder = tmp_path / "runs" / "two"
    check_saved(folder, *signalled_in_training(start, same, folder, ctrl_c), "SIGINT")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_ten_ctrl_c(start: Start, recipe: Path, shards: Path, tmp_path: Path, ranks: int) -> None:
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "--num-processes", ranks]
    for number in range(10):
        folder = tmp_path / "runs" / f"try-{number}"
        check_saved(folder, *signalled_in_training(start, same, folder, ctrl_c), "SIGINT")


@pytest.mark.slow
def test_a_job_with_fresh_starts_over_once_and_goes_on_whenever_it_is_queued_again(
    mu: Mu, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    """The printed script under bash, warned three times; the earlier run is set aside at its first start."""
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "train.steps=400"]
    assert mu(*same, "-o", "train.steps=1")[0] == 0
    code, script = mu(*same, "-o", "train.checkpoint_every=400", "--fresh", "--sbatch")
    assert code == 0
    (tmp_path / "job.sh").write_text(script)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/bash\necho "$@" >> "$(dirname "$0")/requeued"\n')
    (tools / "squeue").write_text("#!/bin/bash\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = {**os.environ, "SLURM_JOB_ID": "17", "CUDA_VISIBLE_DEVICES": ""}
    env["PATH"] = f"{tools}:{env['PATH']}"
    folder, reached = tmp_path / "runs" / "small", []
    for number in range(3):
        with (tmp_path / f"log-{number}").open("w") as log:
            job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=env, stdout=log, stderr=log)
        before, deadline = (reached or [0])[-1], time.monotonic() + 240
        while not before < steps_logged(folder) < 400 or "17" not in mark(folder):
            assert job.poll() is None, (tmp_path / f"log-{number}").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=240) == 75
        reached.append(store.steps(folder / "checkpoints")[-1])
    assert reached == sorted(set(reached))
    assert (tools / "requeued").read_text() == "requeue 17\n" * 3
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small", "small.old-1"]


def mark(folder: Path) -> str:
    path = folder / "fresh-in-job"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ranks_of_torchrun_save_when_torchrun_is_asked_to_stop(
    recipe: Path, shards: Path, tmp_path: Path, name: str
) -> None:
    """Torchrun passes the signal on, and hides the exit codes of its ranks."""
    folder = tmp_path / "runs" / "small"

    def start(*arguments: object) -> subprocess.Popen[str]:
        env = {**os.environ, "MU_RUNS": str(folder.parent), "OMP_NUM_THREADS": "1"}
        env["CUDA_VISIBLE_DEVICES"] = ""
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return subprocess.Popen(
            [*torchrun, "-m", "medunifier_cli", *map(str, arguments)], env=env,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    same = ["pretrain", recipe, "-o", f"data.shards={shards}"]
    number = getattr(signal, name)
    send = ctrl_c if name == "SIGINT" else lambda process: process.send_signal(number)
    _, printed = signalled_in_training(start, same, folder, send)
    check_saved(folder, 75, printed, name)


def test_ranks_change_no_loss(mu: Mu, recipe: Path, shards: Path, tmp_path: Path) -> None:
    """The first steps of one rank and of two agree to rounding: same samples, same negatives, same losses."""
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "data.test=", "-o", "train.steps=3"]
    same += ["-o", "model.qformer.dropout=0"]  # each rank draws its own dropout
    in_this_process(tmp_path / "runs", *same, "--name", "one", "-o", "train.micro_batch=8")
    code, printed = mu(*same, "--name", "two", "--num-processes", 2, "-o", "train.micro_batch=4")
    assert code == 0, printed
    logs = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for one, two in zip(*logs, strict=True):
        if one["event"] == "train":
            for loss in ("itc", "itm", "itg", "tig"):
                assert one[loss] == pytest.approx(two[loss], rel=2e-3), (one["step"], loss)


@pytest.mark.slow
def test_a_run_that_becomes_nan_keeps_its_good_checkpoints_and_goes_on_at_a_lower_rate(
    mu: Mu, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    """The rate rises until the weights are absurd; the warm-up before that is not lost."""
    same = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "data.test=", "-o", "optim.clip_norm=0"]
    same += ["-o", "optim.warmup=1", "-o", "train.steps=40", "-o", "train.log_every=100"]
    same += ["-o", "train.valid_every=0", "-o", "train.skip_limit=5", "-o", "data.workers=0"]
    too_high = ["-o", "optim.peak_lr=1e25", "-o", "optim.warmup_lr=0"]
    run = tmp_path / "runs" / "small"
    for _ in range(2):  # the same command ends in the same way
        code, printed = mu(*same, *too_high)
        assert code == 1, printed
        last = printed.splitlines()[-1]
        assert "not finite" in last
        assert "lower the learning rate in the same command" in last
        for step in store.steps(run / "checkpoints"):
            for name, tensor in store.load(run / "checkpoints" / f"step-{step:08d}").tensors["model"].items():
                assert bool(tensor.isfinite().all()), (step, name)
    code, printed = mu(*same, "-o", "optim.peak_lr=1e-3", "-o", "optim.warmup_lr=0")
    assert code == 0, printed
    assert store.steps(run / "checkpoints")[-1] == 40
    starts = json.loads((run / "provenance.json").read_text())["starts"]
    assert starts[-1]["lowered"] == {"optim.peak_lr": [1e25, 1e-3]}
    assert all("NaN" not in line for line in (run / "log.jsonl").read_text().splitlines())
