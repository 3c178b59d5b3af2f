"""The SLURM script, run by bash with stand-ins for `mu` and `scontrol`."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from medunifier_cli.distributed.sbatch import WARNING_SECONDS, script
from tests.folders import ROOT

ARGUMENTS = ["pretrain", "my recipe.yaml", "-o", "name=a b", "--sbatch"]

MU = """#!/bin/bash
printf '%s\\n' "$@" > arguments
if [ -n "$EARLY" ]; then kill -"$EARLY" $$; sleep 20; fi
trap 'echo USR1 > signal; sleep 0.3; exit 75' USR1
trap 'echo TERM > signal; exit 75' TERM
if [ -n "$CODE" ]; then exit "$CODE"; fi
touch started
while true; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with the script, a `mu` that waits for a signal, and a `scontrol` that notes its arguments."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "mu").write_text(MU)
    (tools / "scontrol").write_text('#!/bin/bash\necho "$@" > requeued\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "job.sh").write_text(script(ARGUMENTS, "demo", 2, 3))
    return tmp_path


def start(job: Path, code: str = "") -> subprocess.Popen[bytes]:
    path = f"{job / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "SLURM_JOB_ID": "17", "CODE": code}
    return subprocess.Popen(["bash", "job.sh"], cwd=job, env=env)


def test_header_asks_for_a_warning_a_requeue_and_room_for_all_processes() -> None:
    settings = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script(ARGUMENTS, "demo", 2, 3), re.MULTILINE))
    assert settings["job-name"] == "mu-demo"
    assert settings["gpus-per-node"] == "2"
    assert settings["cpus-per-task"] == "8"  # two processes, each with three loaders
    assert settings["nodes"] == settings["ntasks-per-node"] == "1"  # mu starts the others itself
    assert settings["signal"] == f"B:USR1@{WARNING_SECONDS}"
    assert settings["open-mode"] == "append"  # a requeued job continues its log
    assert "requeue" in settings


def test_the_script_of_the_documentation_is_the_one_that_is_printed() -> None:
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert f"```bash\n{script(['pretrain', 'full', '--sbatch'], 'full', 4, 2)}```" in page


def lines_that_differ(one: str, other: str) -> list[str]:
    return [line for line in other.splitlines() if line not in one.splitlines()]


def test_the_lines_of_the_documentation_are_those_of_two_nodes() -> None:
    words = ["pretrain", "full", "-o", "train.micro_batch=32", "--sbatch"]
    several = script([*words, "--nodes", "2"], "full", 4, 2, nodes=2)
    changed = lines_that_differ(script(words, "full", 4, 2), several)
    page = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
    assert "```bash\n" + "\n".join(changed) + "\n```" in page
    assert script([*words, "--nodes=2"], "full", 4, 2, nodes=2) == several


SRUN = """#!/bin/bash
# starts four tasks, passes signals on to them, and ends with their highest exit code
shift
for rank in 0 1 2 3; do (cd "rank$rank" && exec "$@") & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
code=0
for task in $tasks; do
  while kill -0 $task 2>/dev/null; do wait $task; done
  wait $task; last=$?; [ $last -gt $code ] && code=$last
done
exit $code
"""


def test_all_tasks_of_several_nodes_are_warned_and_the_job_is_requeued(job: Path) -> None:
    (job / "bin" / "srun").write_text(SRUN)
    (job / "bin" / "srun").chmod(0o755)
    ranks = [job / f"rank{rank}" for rank in range(4)]
    for folder in ranks:
        folder.mkdir()
    (job / "job.sh").write_text(script([*ARGUMENTS, "--nodes", "2"], "demo", 2, 3, nodes=2))
    process = start(job)
    deadline = time.monotonic() + 20
    while not all((folder / "started").exists() for folder in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=30) == 75
    assert (job / "requeued").read_text() == "requeue 17\n"
    for folder in ranks:
        assert (folder / "signal").read_text() == "USR1\n"
        assert (folder / "arguments").read_text().splitlines() == ARGUMENTS[:-1]


@pytest.mark.parametrize("name", ["two words", "it's", 'a"b', "a#b", "$HOME", "50%j", "x; rm -rf ~"])
def test_a_name_stays_one_word_of_the_script(name: str) -> None:
    """sbatch reads its lines as a shell reads words."""
    text = script(["pretrain", "demo", "--run", name], name, 1, 0)
    job, log = (re.search(rf"^#SBATCH --{key}=(.*)$", text, re.MULTILINE) for key in ("job-name", "output"))
    assert job is not None
    assert log is not None
    assert shlex.split(job[1], comments=True) == [f"mu-{name}"]
    assert shlex.split(log[1], comments=True) == [f"mu-{name.replace('%', '%%')}-%j.log"]
    command = next(line for line in text.splitlines() if line.startswith("mu "))
    assert shlex.split(command, comments=True)[:5] == ["mu", "pretrain", "demo", "--run", name]


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_reaches_mu_and_the_job_is_requeued_once_it_has_saved(job: Path, name: str) -> None:
    process = start(job)
    deadline = time.monotonic() + 20
    while not (job / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.wait(timeout=20) == 75
    assert (job / "signal").read_text() == f"{name}\n"
    assert (job / "requeued").read_text() == "requeue 17\n"
    assert (job / "arguments").read_text().splitlines() == ARGUMENTS[:-1]


def in_the_shell(job: Path, line: str) -> None:
    """Put a command into the script, just before it starts `mu`."""
    text = (job / "job.sh").read_text()
    assert text.count("\nmu pretrain") == 1
    (job / "job.sh").write_text(text.replace("\nmu pretrain", f"\n{line}\nmu pretrain"))


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_before_there_is_a_mu_is_not_lost(job: Path, name: str) -> None:
    """It ends `mu` before that can answer, or is answered; the job is queued again either way."""
    in_the_shell(job, f"kill -{name} $$")
    assert start(job).wait(timeout=60) == 75
    assert (job / "requeued").read_text() == "requeue 17\n"


@pytest.mark.parametrize(("name", "code"), [("USR1", 138), ("TERM", 143)])
def test_a_mu_that_the_signal_ends_before_it_answers_is_requeued_if_the_job_was_warned(
    job: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    monkeypatch.setenv("EARLY", name)
    assert start(job).wait(timeout=60) == code  # by whoever it was, it was not the end of the job's time
    assert not (job / "requeued").exists()
    in_the_shell(job, f"warned={name}")
    assert start(job).wait(timeout=60) == 75
    assert (job / "requeued").exists()


def test_the_code_is_that_of_mu_where_the_signal_comes_as_it_ends(job: Path) -> None:
    """`wait` then returns the number of the signal, and there is no process any more to wait for."""
    (job / "bin" / "mu").write_text("#!/bin/bash\ntrap '' USR1\nkill -USR1 $PPID\nsleep 0.2\n")
    text = (job / "job.sh").read_text()
    (job / "job.sh").write_text(text.replace("\nwhile kill", "\nsleep 1\nwhile kill"))
    assert start(job).wait(timeout=60) == 0
    assert not (job / "requeued").exists()


def test_fresh_holds_for_the_first_start_of_a_job(job: Path) -> None:
    """`--fresh` itself would start over whenever the job is queued again."""
    (job / "job.sh").write_text(script([*ARGUMENTS, "--fresh"], "demo", 2, 3))
    assert start(job, "0").wait(timeout=60) == 0
    assert (job / "arguments").read_text().splitlines() == [*ARGUMENTS[:-1], "--fresh-in-job", "17"]


@pytest.mark.parametrize("code", ["0", "1"])
def test_an_end_or_an_error_is_the_jobs_and_requeues_nothing(job: Path, code: str) -> None:
    assert start(job, code).wait(timeout=20) == int(code)
    assert not (job / "requeued").exists()
