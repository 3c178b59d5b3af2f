"""`--sbatch` on each verb: what the script asks for, and which words of the command line it runs."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from medunifier_cli import cli
from medunifier_cli.cluster.options import seconds_of, words_of_the_job
from tests.folders import ROOT

Mu = Callable[..., Result]
PAGE = (ROOT / "docs" / "slurm.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
LONG = (
    "prepare",
    "pretrain",
    "fit-prior",
    "finetune",
    "retrieve",
    "zeroshot",
    "report",
    "synthesize",
    "score",
)


@pytest.fixture
def mu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mu:
    """`mu ...` in this process, in a folder of its own, as if it were installed in /opt/mu."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["/opt/mu/bin/python", *words])
        return CliRunner().invoke(cli.mu, words)

    return call


def printed(result: Result) -> tuple[dict[str, str], list[str]]:
    """Settings of the script that was printed, and the words of `mu` that it runs."""
    assert result.exit_code == 0, result.output
    lines = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", result.stdout, re.MULTILINE)
    command = next(line for line in result.stdout.splitlines() if " -m medunifier_cli " in line)
    words = shlex.split(command.removesuffix(" &"))
    return {name: " ".join(shlex.split(value)) for name, value in lines}, words[words.index("-m") + 2 :]


@pytest.mark.parametrize(
    ("line", "name", "gpus", "cores", "memory"),
    [
        ("pretrain full", "full", "4", "12", "192G"),
        ("finetune finetune-demo", "finetune-demo-1", "1", "2", "48G"),
        ("fit-prior prior-demo --run p", "p", "1", "3", "48G"),
        ("report --run runs/demo --split test", "report-demo", "1", "4", "48G"),
        ("zeroshot --run demo", "zeroshot-demo", "1", "4", "48G"),
        ("retrieve", "retrieve", "1", "4", "48G"),
        ("synthesize --n 50000 --out s", "synthesize", "1", "4", "48G"),
        ("score demo --fake s --real test", "score", "1", "4", "48G"),
        ("score --reports r.jsonl --clinical", "score", "1", "4", "48G"),
        ("score --reports r.jsonl", "score", None, "4", "16G"),
        ("prepare phantom", "prepare-phantom", None, "8", "32G"),
        ("prepare phantom --workers 20 --name p", "prepare-p", None, "20", "80G"),
        ("prepare --features full", "features-full", "4", "12", "192G"),
    ],
)
def test_each_long_verb_asks_for_what_it_needs(
    mu: Mu, line: str, name: str, gpus: str | None, cores: str, memory: str
) -> None:
    settings, words = printed(mu(*line.split(), "--sbatch", "--time", "8:00:00"))
    assert settings["job-name"] == f"mu-{name}"
    assert (settings.get("gpus-per-node"), settings["cpus-per-task"]) == (gpus, cores)
    assert (settings["mem"], settings["time"]) == (memory, "8:00:00")
    assert words == line.split()


def test_only_verbs_that_resume_are_warned_and_queued_again(mu: Mu) -> None:
    """What starts over would end at the same limit again."""
    for line, resumes in [
        ("pretrain demo", True), ("synthesize", True), ("prepare phantom", True),
        ("synthesize --reconstruct", False), ("report", False), ("zeroshot", False), ("score demo", False),
    ]:  # fmt: skip
        result = mu(*line.split(), "--sbatch")
        assert ("signal" in printed(result)[0]) == ("scontrol requeue" in result.stdout) == resumes, line


def test_every_long_verb_has_the_options_of_a_job() -> None:
    context = click.Context(cli.mu)
    for verb in LONG:
        command = cli.mu.get_command(context, verb)
        assert command is not None
        names = {name for param in command.params for name in param.opts}
        assert {"--sbatch", "--partition", "--account", "--time", "--mail"} <= names, verb


def test_the_script_says_where_everything_is(mu: Mu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job has none of the login shell's working folder and perhaps none of its variables."""
    monkeypatch.setenv("MU_DATA", "my data/$x")
    monkeypatch.delenv("MU_RUNS")
    monkeypatch.setenv("HOME", "/home/it's me")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    lines = mu("report", "--sbatch").stdout.splitlines()
    said = {shlex.split(line)[1] for line in lines if line.startswith("export ")}
    assert said == {
        f"MU_DATA={tmp_path}/my data/$x", f"MU_RUNS={tmp_path}/runs",
        "HF_HOME=/home/it's me/.cache/huggingface", "HF_HUB_OFFLINE=1",
    }  # fmt: skip
    assert f"cd -- {shlex.quote(str(tmp_path))} || exit 1" in lines


def test_the_script_starts_the_mu_that_printed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.venv/bin/mu` works in a job whose shell knows no `mu`; as does a source tree without one."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a b" / "mu"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    for typed, expected in [("a b/mu", [str(path)]), ("other.py", [sys.executable, "-m", "medunifier_cli"])]:
        monkeypatch.setattr(sys, "argv", [typed, "report", "--sbatch"])
        text = CliRunner().invoke(cli.mu, ["report", "--sbatch"]).stdout
        assert shlex.split(text.splitlines()[-1]) == ["exec", *expected, "report"]


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("report --sbatch -- --time", "report -- --time"),
        ("report --time=90 --sbatch a.png", "report a.png"),
        ("report --account x --sbatch --partition p --mail a@b --split test", "report --split test"),
        ("synthesize --prompt --sbatch --sbatch", "synthesize --prompt --sbatch"),
        ("synthesize --reconstruct --sbatch --n 5", "synthesize --reconstruct --n 5"),
        ("synthesize --reconstruct test --sbatch", "synthesize --reconstruct test"),
        ("prepare x --parts 4 --sbatch -o a=--sbatch", "prepare x -o a=--sbatch"),
        ("pretrain demo --fresh --sbatch --nodes=2 --requeues 3 --run time", "pretrain demo --run time"),
        ("--debug pretrain --sbatch demo", "--debug pretrain demo"),
    ],
)
def test_the_job_runs_the_command_without_the_options_of_the_job(typed: str, kept: str) -> None:
    words = typed.split()
    command = cli.mu.get_command(click.Context(cli.mu), next(word for word in words if word[0] != "-"))
    assert command is not None
    assert words_of_the_job(words, command) == tuple(kept.split())


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("5:30", 330), ("12:00:00", 43200), ("2-0", 172800), ("1-2:3", 93780), ("1-2:3:4", 93784)],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("report --time 60", "--time is for --sbatch"),
        ("pretrain demo --nodes 2", "--nodes is for --sbatch"),
        ("prepare phantom --parts 2", "--parts is for --sbatch"),
        ("pretrain demo --sbatch --time 5", "--time 5 leaves no time to work"),
        ("pretrain demo --sbatch --time tomorrow", "is not a time"),
        ("report --sbatch --mail", "requires an argument"),
        ("prepare phantom --sbatch --parts 3 --part 1/2", "give one of them"),
        ("score --sbatch --real test", "images are judged with --fake"),
        ("report --sbatch --account -x", "is not one word"),
    ],
)
def test_what_cannot_become_a_job_is_a_usage_error(mu: Mu, line: str, message: str) -> None:
    result = mu(*line.split())
    assert result.exit_code == 2
    assert message in result.output


def test_an_array_is_one_task_for_each_part(mu: Mu) -> None:
    settings, words = printed(mu("prepare", "mimic-cxr", "--sbatch", "--parts", "16"))
    assert settings["array"] == "1-16"
    assert words == ["prepare", "mimic-cxr", "--part", "$SLURM_ARRAY_TASK_ID/16"]


def page_of(line: str, mu: Mu, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command of the page prints where the page says it is typed."""
    monkeypatch.setattr("os.getcwd", lambda: "/home/you/study")
    places = {"MU_DATA": "/project/you/data", "MU_RUNS": "/project/you/runs", "HF_HOME": "/project/you/hub"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("medunifier_cli.cluster.options.this_mu", lambda: ("/home/you/venv/bin/mu",))
    result = mu(*shlex.split(line.partition(" > ")[0].partition(" | ")[0])[1:])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_script_of_the_page_is_the_one_that_is_printed(mu: Mu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"```bash\n{page_of('mu pretrain full --sbatch', mu, monkeypatch)}```" in PAGE


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("mu ") and "--sbatch" in line])
def test_each_command_of_the_page_prints_a_script(mu: Mu, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    assert page_of(line, mu, monkeypatch).startswith("#!/bin/bash\n#SBATCH ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pretrain full -o train.micro_batch=32", "pretrain full -o train.micro_batch=32 --nodes 2"),
        ("prepare mimic-cxr", "prepare mimic-cxr --parts 16"),
    ],
)
def test_the_lines_of_the_page_are_those_that_differ(
    mu: Mu, monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    plain, changed = (page_of(f"mu {line} --sbatch", mu, monkeypatch).splitlines() for line in (one, other))
    assert "```bash\n" + "\n".join(line for line in changed if line not in plain) + "\n```" in PAGE
