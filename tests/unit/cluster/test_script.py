"""The SLURM script, run by bash with stand-ins for `mu`, `srun`, `squeue` and `scontrol`."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medunifier_cli.cluster.script import WARNING_SECONDS, Job, Wishes, script

WORDS = ("pretrain", "my recipe.yaml", "-o", "name=a b", "--run", "it's $HOME")
JOB = Job(("mu", *WORDS), "demo", processes=2, cores=4)

MU = """#!/bin/bash
printf '%s\\n' "$@" > arguments
env | grep -E '^(MU|HF)_' | sort > environment
if [ -n "$EARLY" ]; then kill -"$EARLY" $$; sleep 20; fi
trap 'echo USR1 > signal; sleep 0.3; exit 75' USR1
trap 'echo TERM > signal; exit 75' TERM
if [ -n "$CODE" ]; then exit "$CODE"; fi
touch started
while true; do sleep 0.05; done
"""
SQUEUE = '#!/bin/bash\necho "$@" > asked; if [ -n "$TIMES" ]; then echo "$TIMES"; fi\n'
SCONTROL = '#!/bin/bash\necho "$@" > requeued\n'
SRUN = """#!/bin/bash
# starts four tasks, passes signals on to them, and ends with their highest exit code
while [[ "$1" == --* ]]; do echo "$1" >> options; shift; done
for rank in 0 1 2 3; do (cd "rank$rank" && exec "$@") & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
code=0
for task in $tasks; do
  while kill -0 $task 2>/dev/null; do wait $task; done
  wait $task; last=$?; [ $last -gt $code ] && code=$last
done
exit $code
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the script, a `mu` that waits for a signal, and the programs of SLURM that it calls."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("mu", MU), ("scontrol", SCONTROL), ("squeue", SQUEUE), ("srun", SRUN)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(script(JOB))
    return tmp_path


def start(folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "SLURM_JOB_ID": "17", **variables}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(["bash", "job.sh"], cwd=folder, env=env, stdout=log, stderr=log)


def started(folder: Path, process: subprocess.Popen[bytes], *files: str) -> subprocess.Popen[bytes]:
    deadline = time.monotonic() + 20
    while not all((folder / file).exists() for file in files or ("started",)):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def warn(folder: Path, number: signal.Signals, **variables: str) -> int:
    """Start the script, send the shell a signal once `mu` runs, and wait for its end."""
    process = started(folder, start(folder, **variables))
    process.send_signal(number)
    return process.wait(timeout=20)


def settings_of(text: str) -> dict[str, str]:
    """The lines that sbatch reads, unquoted."""
    lines = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE)
    return {name: " ".join(shlex.split(value, comments=True)) for name, value in lines}


def test_header_asks_for_a_warning_a_requeue_and_room_for_all_processes() -> None:
    settings = settings_of(script(JOB))
    assert settings["job-name"] == "mu-demo"
    assert settings["gpus-per-node"] == "2"
    assert settings["cpus-per-task"] == "8"  # two processes, each with three loaders
    assert settings["nodes"] == settings["ntasks-per-node"] == "1"  # mu starts the others itself
    assert settings["signal"] == f"B:USR1@{WARNING_SECONDS}"
    assert settings["open-mode"] == "append"  # a requeued job continues its log
    assert "requeue" in settings
    assert not {"partition", "account", "mail-user", "array"} & set(settings)


def test_header_says_what_the_user_wants() -> None:
    wishes = Wishes(partition="gpu,long", account="a$b", time="2-12:00:00", mail="a@b.org")
    settings = settings_of(script(dataclasses.replace(JOB, wishes=wishes)))
    assert (settings["partition"], settings["account"]) == ("gpu,long", "a$b")
    assert (settings["time"], settings["mail-user"]) == ("2-12:00:00", "a@b.org")
    assert settings["mail-type"] == "END,FAIL,REQUEUE"


def test_a_job_without_gpus_asks_for_none() -> None:
    settings = settings_of(script(dataclasses.replace(JOB, gpus=False)))
    assert "gpus-per-node" not in settings
    assert settings["mem"] == "32G"  # 4 GB for each of eight cores


@pytest.mark.parametrize("name", ["two words", "it's", 'a"b', "a#b", "$HOME", "50%j", "x; rm -rf ~"])
def test_a_name_stays_one_word_of_the_script(name: str) -> None:
    """sbatch reads its lines as a shell reads words; tests/run/test_slurm.py asks SLURM itself."""
    settings = settings_of(script(dataclasses.replace(JOB, name=name)))
    assert settings["job-name"] == f"mu-{name}"
    assert settings["output"] == f"mu-{name.replace('%', '%%')}-%j.log"


def test_mu_gets_its_words_its_folder_and_its_variables(folder: Path) -> None:
    place = folder / "a $HOME 'b'"
    place.mkdir()
    job = dataclasses.replace(JOB, folder=str(place), variables={"MU_DATA": "/a b/$x", "HF_HOME": "/it's"})
    (folder / "job.sh").write_text(script(job))
    assert start(folder, CODE="0", MU_RUNS="").wait(timeout=20) == 0
    assert (place / "arguments").read_text().splitlines() == list(WORDS)
    assert (place / "environment").read_text().splitlines() == [
        "HF_HOME=/it's", "HF_HUB_OFFLINE=1", "MU_DATA=/a b/$x", "MU_RUNS=",
    ]  # fmt: skip


def test_a_folder_that_is_not_there_runs_nothing_elsewhere(folder: Path) -> None:
    (folder / "job.sh").write_text(script(dataclasses.replace(JOB, folder=str(folder / "away"))))
    assert start(folder, CODE="0").wait(timeout=20) == 1
    assert not (folder / "arguments").exists()


def test_the_warning_reaches_mu_and_the_job_is_requeued_once_it_has_saved(folder: Path) -> None:
    assert warn(folder, signal.SIGUSR1) == 75
    assert (folder / "signal").read_text() == "USR1\n"
    assert (folder / "requeued").read_text() == "requeue 17\n"


def test_a_cancelled_job_saves_and_is_not_requeued(folder: Path) -> None:
    assert warn(folder, signal.SIGTERM) == 75
    assert (folder / "signal").read_text() == "TERM\n"
    assert not (folder / "requeued").exists()


def test_a_job_that_is_cancelled_after_the_warning_is_not_requeued(folder: Path) -> None:
    process = started(folder, start(folder))
    process.send_signal(signal.SIGUSR1)
    started(folder, process, "signal").send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75
    assert not (folder / "requeued").exists()
    assert "cancelled" in (folder / "log").read_text()


@pytest.mark.parametrize(("restarts", "requeued"), [("2", True), ("3", False)])
def test_a_job_is_requeued_so_many_times(folder: Path, restarts: str, requeued: bool) -> None:
    (folder / "job.sh").write_text(script(dataclasses.replace(JOB, wishes=Wishes(requeues=3))))
    assert warn(folder, signal.SIGUSR1, SLURM_RESTART_COUNT=restarts) == 75
    assert (folder / "requeued").exists() == requeued
    assert ("queued again 3 times, its limit" in (folder / "log").read_text()) != requeued


@pytest.mark.parametrize(
    ("times", "requeued"),
    [
        ("2026-11-28T22:00:00 2026-11-28T22:05:00", False),
        ("2026-11-28T22:00:00 2026-11-28T22:06:00", True),
        ("2026-11-28T22:00:00 N/A", True),  # no limit
        ("", True),  # no answer
    ],
)
def test_a_time_limit_that_leaves_nothing_before_the_warning_requeues_nothing(
    folder: Path, times: str, requeued: bool
) -> None:
    """Such a job is warned as soon as it starts, whoever changed the limit that `mu` wrote."""
    assert warn(folder, signal.SIGUSR1, TIMES=times) == 75
    assert (folder / "requeued").exists() == requeued
    assert ("a limit of 300 s" in (folder / "log").read_text()) != requeued
    assert "--jobs=17" in (folder / "asked").read_text()


def test_all_tasks_of_several_nodes_are_warned_and_the_job_is_requeued(folder: Path) -> None:
    job = dataclasses.replace(JOB, nodes=2)
    settings = settings_of(script(job))
    assert (settings["nodes"], settings["ntasks-per-node"], settings["cpus-per-task"]) == ("2", "2", "4")
    assert settings["gpus-per-node"] == "2"
    (folder / "job.sh").write_text(script(job))
    ranks = [folder / f"rank{rank}" for rank in range(4)]
    for rank in ranks:
        rank.mkdir()
    process = started(
        folder, start(folder, SLURM_CPUS_PER_TASK="4"), *(f"{rank.name}/started" for rank in ranks)
    )
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 75
    assert (folder / "requeued").read_text() == "requeue 17\n"
    assert "--cpus-per-task=4" in (folder / "options").read_text().splitlines()
    for rank in ranks:
        assert (rank / "signal").read_text() == "USR1\n"
        assert (rank / "arguments").read_text().splitlines() == list(WORDS)


def test_a_task_of_an_array_makes_its_part_and_is_requeued_alone(folder: Path) -> None:
    """SLURM gives the last task the number of the whole array."""
    job = Job(("mu", "prepare", "phantom"), "p", cores=2, gpus=False, parts=3)
    assert settings_of(script(job))["array"] == "1-3"
    assert settings_of(script(job))["output"] == "mu-p-%A_%a.log"
    (folder / "job.sh").write_text(script(job))
    assert warn(folder, signal.SIGUSR1, SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="3") == 75
    assert (folder / "arguments").read_text().splitlines() == ["prepare", "phantom", "--part", "3/3"]
    assert (folder / "requeued").read_text() == "requeue 17_3\n"


def in_the_shell(folder: Path, line: str) -> None:
    """Put a command into the script, just before it starts `mu`."""
    text = (folder / "job.sh").read_text()
    assert text.count("\nmu pretrain") == 1
    (folder / "job.sh").write_text(text.replace("\nmu pretrain", f"\n{line}\nmu pretrain"))


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_before_there_is_a_mu_is_not_lost(folder: Path, name: str) -> None:
    """It ends `mu` before that can answer, or is answered; a warned job is queued again either way."""
    in_the_shell(folder, f"kill -{name} $$")
    assert start(folder).wait(timeout=60) in ((75,) if name == "USR1" else (75, 143))
    assert (folder / "requeued").exists() == (name == "USR1")


def test_a_mu_that_the_warning_ends_before_it_answers_is_requeued_if_the_job_was_warned(folder: Path) -> None:
    assert start(folder, EARLY="USR1").wait(timeout=60) == 138  # by whoever it was: time is not up
    assert not (folder / "requeued").exists()
    in_the_shell(folder, "warned=1")
    assert start(folder, EARLY="USR1").wait(timeout=60) == 75
    assert (folder / "requeued").exists()


def test_the_code_is_that_of_mu_where_the_signal_comes_as_it_ends(folder: Path) -> None:
    """`wait` then returns the number of the signal, and there is no process any more to wait for."""
    (folder / "bin" / "mu").write_text("#!/bin/bash\ntrap '' USR1\nkill -USR1 $PPID\nsleep 0.2\n")
    text = (folder / "job.sh").read_text()
    (folder / "job.sh").write_text(text.replace("\nwhile kill", "\nsleep 1\nwhile kill"))
    assert start(folder).wait(timeout=60) == 0
    assert not (folder / "requeued").exists()


def test_fresh_holds_for_the_first_start_of_a_job(folder: Path) -> None:
    """`--fresh` itself would start over whenever the job is queued again."""
    (folder / "job.sh").write_text(script(dataclasses.replace(JOB, fresh=True)))
    assert start(folder, CODE="0").wait(timeout=60) == 0
    assert (folder / "arguments").read_text().splitlines() == [*WORDS, "--fresh-in-job", "17"]


@pytest.mark.parametrize("code", ["0", "1", "75"])
def test_an_end_or_an_error_is_the_jobs_and_requeues_nothing(folder: Path, code: str) -> None:
    """75 without a warning: `mu` alone was signalled, by hand."""
    assert start(folder, CODE=code).wait(timeout=20) == int(code)
    assert not (folder / "requeued").exists()


def test_a_command_that_would_start_over_is_not_warned(folder: Path) -> None:
    text = script(dataclasses.replace(JOB, resumes=False))
    assert "signal" not in settings_of(text)
    (folder / "job.sh").write_text(text)
    assert warn(folder, signal.SIGTERM) == 75  # bash has become mu
    assert not (folder / "requeued").exists()
