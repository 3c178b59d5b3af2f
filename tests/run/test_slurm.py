"""The scripts that `--sbatch` prints, under a real SLURM: warnings, requeues, scancel, arrays, two nodes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medunifier_cli.checkpoint import store
from medunifier_cli.cluster.script import Job, Wishes, script
from tests.run import slurm
from tests.run.slurm import Cluster, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "SLURM is installed"),
]

MU = """#!/bin/bash
# notes each start, by task, and each signal; ends with 75 on a signal
note() { echo "$1" >> "task-${SLURM_ARRAY_TASK_ID:-$SLURM_PROCID}"; }
trap 'note USR1; exit 75' USR1
trap 'note TERM; exit 75' TERM
note "start $*"
for _ in {1..1200}; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm.running() as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where jobs run, with the `mu` of `job`."""
    (tmp_path / "mu").write_text(MU)
    (tmp_path / "mu").chmod(0o755)
    return tmp_path


def job(folder: Path, **changes: object) -> str:
    """The script of a job that notes what happens to it."""
    plain = Job((str(folder / "mu"), "work"), "it's a $HOME", folder=str(folder), cores=2)
    return script(dataclasses.replace(plain, **changes))  # type: ignore[arg-type]


def notes(folder: Path, task: object = 0) -> list[str]:
    """What the `mu` of a task noted."""
    path = folder / f"task-{task}"
    return path.read_text().splitlines() if path.exists() else []


def test_a_warned_job_starts_again_and_a_cancelled_one_does_not(cluster: Cluster, folder: Path) -> None:
    number = cluster.submit(job(folder), folder)
    for restarts in (1, 2):
        until(lambda restarts=restarts: notes(folder).count("start work") == restarts)  # type: ignore[misc]
        cluster.warn(number)
        cluster.wait(number, "RUNNING", restarts=restarts)
    until(lambda: notes(folder).count("start work") == 3)
    cluster.call("scancel", number)
    state = cluster.wait(number, "CANCELLED")
    assert state["Restarts"] == "2"
    time.sleep(10)  # longer than a job that was queued again waits
    assert cluster.job(number)["JobState"] == "CANCELLED"
    assert notes(folder) == ["start work", "USR1", "start work", "USR1", "start work", "TERM"]


def test_a_job_is_queued_again_so_many_times(cluster: Cluster, folder: Path) -> None:
    number = cluster.submit(job(folder, wishes=Wishes(requeues=1)), folder, "--output=log")
    for starts in (1, 2):
        until(lambda starts=starts: notes(folder).count("start work") == starts)  # type: ignore[misc]
        cluster.warn(number)
    assert cluster.wait(number, "FAILED")["ExitCode"] == "75:0"
    assert f"job {number} was queued again 1 times, its limit" in (folder / "log").read_text()


def test_a_time_limit_that_leaves_nothing_before_the_warning_ends_the_job(
    cluster: Cluster, folder: Path
) -> None:
    """SLURM itself warns here, at its next look at the limits."""
    number = cluster.submit(job(folder), folder, "--time=4", "--output=log")
    assert cluster.wait(number, "FAILED")["Restarts"] == "0"
    assert notes(folder) == ["start work", "USR1"]
    assert "a limit of 240 s" in (folder / "log").read_text()


def test_a_warning_of_slurm_itself_queues_the_job_again(cluster: Cluster, folder: Path) -> None:
    number = cluster.submit(job(folder), folder, "--time=6")
    until(lambda: notes(folder) == ["start work"])
    cluster.wait(number, "PENDING", "RUNNING", restarts=1)
    assert notes(folder)[:2] == ["start work", "USR1"]
    cluster.call("scancel", number)


@pytest.mark.parametrize("name", ["two words", "it's", 'a"b', "a#b", "$HOME", "50%j", "x; touch y"])
def test_sbatch_reads_names_as_they_are(cluster: Cluster, folder: Path, name: str) -> None:
    number = cluster.submit(job(folder, name=name, command=("true",)), folder)
    cluster.wait(number, "COMPLETED")
    shown = cluster.call("squeue", "--noheader", "--states=all", "--jobs", number, "--format=%j")
    assert shown == f"mu-{name}"
    assert [path.name for path in folder.glob("*.log")] == [f"mu-{name}-{number}.log"]


def test_one_task_of_an_array_is_queued_again_by_itself(cluster: Cluster, folder: Path) -> None:
    """The task that has the number of the whole array among them."""
    number = cluster.submit(job(folder, parts=3, gpus=False), folder)
    for task in (1, 2, 3):
        until(lambda task=task: len(notes(folder, task)) == 1)  # type: ignore[misc]
        assert notes(folder, task) == [f"start work --part {task}/3"]
    (master,) = [task for task in (1, 2, 3) if cluster.job(f"{number}_{task}")["JobId"] == number]
    cluster.warn(f"{number}_{master}")
    cluster.wait(f"{number}_{master}", "RUNNING", restarts=1)
    until(lambda: len(notes(folder, master)) == 3)
    for task in {1, 2, 3} - {master}:
        assert len(notes(folder, task)) == 1
        assert cluster.job(f"{number}_{task}")["Restarts"] == "0"
    cluster.call("scancel", number)
    cluster.wait(f"{number}_{master}", "CANCELLED")


def test_all_tasks_of_two_nodes_are_warned_and_cancelled(cluster: Cluster, folder: Path) -> None:
    number = cluster.submit(job(folder, processes=2, nodes=2), folder)
    tasks = range(4)
    until(lambda: all(len(notes(folder, task)) == 1 for task in tasks))
    cluster.warn(number)
    until(lambda: all(len(notes(folder, task)) == 3 for task in tasks))
    assert cluster.wait(number, "RUNNING", restarts=1)["NodeList"] == "n[1-2]"
    cluster.call("scancel", number)
    cluster.wait(number, "CANCELLED")
    for task in tasks:
        assert notes(folder, task) == ["start work", "USR1", "start work", "TERM"]


def test_a_job_that_would_start_over_is_ended_and_stays_ended(cluster: Cluster, folder: Path) -> None:
    number = cluster.submit(job(folder, resumes=False), folder)
    until(lambda: notes(folder) == ["start work"])
    cluster.call("scancel", number)
    cluster.wait(number, "CANCELLED")
    until(lambda: notes(folder) == ["start work", "TERM"])


Mu = Callable[..., tuple[int, str]]


def test_training_on_two_nodes_resumes_after_the_warning_and_ends(
    cluster: Cluster, mu: Mu, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    """A run with blanks and a dollar sign in its name, by the `mu` of this environment."""
    words = ["pretrain", recipe, "-o", f"data.shards={shards}", "-o", "train.steps=30"]
    words += ["-o", "data.valid=", "-o", "data.test=", "-o", "objectives.tig=0"]
    code, text = mu(*words, "--sbatch", "--nodes", 2, "--num-processes", 1, "--name", "a $b")
    assert code == 0
    run = tmp_path / "runs" / "a $b"
    # the pretended nodes' names lead nowhere
    alone = {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    number = cluster.submit(text, tmp_path, "--output=log", **alone)
    until(lambda: (run / "log.jsonl").exists(), lambda: (tmp_path / "log").read_text())
    cluster.warn(number)
    until(lambda: cluster.job(number)["Restarts"] == "1", lambda: (tmp_path / "log").read_text())
    warned = store.steps(run / "checkpoints")[-1]
    assert 0 < warned < 30
    cluster.wait(number, "COMPLETED", restarts=1, patience=600)
    steps = [
        line["step"]
        for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if "step" in line
    ]
    assert steps == sorted(steps)
    assert store.steps(run / "checkpoints")[-1] == 30
    assert "SIGUSR1" in (tmp_path / "log").read_text()


def test_an_array_prepares_a_data_set(
    cluster: Cluster, mu: Mu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["-o", "train=24", "-o", "valid=4", "-o", "test=4"]
    code, text = mu(
        "prepare", "phantom", "--out", "my shards", "--size", 32, *sizes, "--sbatch", "--parts", 3
    )
    assert code == 0
    number = cluster.submit(text, tmp_path, "--output=log-%a", "--cpus-per-task=1")
    for task in (1, 2, 3):
        cluster.wait(f"{number}_{task}", "COMPLETED")
    manifest = json.loads((tmp_path / "my shards" / "manifest.json").read_text())
    assert manifest["samples"] == 32
