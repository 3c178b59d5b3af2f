"""How a training verb starts: which run, in how many processes, and when it only prints a script."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from medunifier_cli.cluster.options import JobOptions
from medunifier_cli.cluster.script import Wishes
from medunifier_cli.distributed import group, launch
from medunifier_cli.errors import MuError
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.stages import start as start_module
from medunifier_cli.stages.start import StartOptions

PLAIN = StartOptions((), "", None, fresh=False)
JOB = JobOptions(("pretrain", "demo"), "", Wishes())


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of runs, and no launcher's variables."""
    monkeypatch.setenv("MU_RUNS", str(tmp_path))
    for name in (*group.PLACE, *group.MEETING, "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


class Calls:
    """Records what `start` calls."""

    def __init__(self) -> None:
        self.trained: list[tuple[PretrainRecipe, Path]] = []
        self.groups: list[int] = []

    def train(self, recipe: PretrainRecipe, folder: Path) -> None:
        self.trained.append((recipe, folder))

    def run_ranks(self, processes: int, train: object, arguments: object) -> int:
        self.groups.append(processes)
        return 75


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(launch, "run_ranks", calls.run_ranks)
    return calls


def recipe(processes: int = 1) -> PretrainRecipe:
    return load_recipe("demo", (f"train.processes={processes}",))


def old_run(runs: Path, name: str = "demo") -> Path:
    (runs / name).mkdir()
    (runs / name / "recipe.yaml").write_text("name: old\n")
    return runs / name


def test_one_process_trains_here_under_the_default_or_the_given_name(runs: Path, calls: Calls) -> None:
    PLAIN.start(calls.train, recipe(), "demo")
    dataclasses.replace(PLAIN, name="mine").start(calls.train, recipe(), "demo")
    assert [folder for _, folder in calls.trained] == [runs / "demo", runs / "mine"]
    assert calls.groups == []


@pytest.mark.parametrize(("option", "in_recipe", "expected"), [(None, 3, 3), (2, 3, 2), (2, 1, 2)])
def test_several_processes_are_started_and_their_exit_code_is_the_commands(
    calls: Calls, option: int | None, in_recipe: int, expected: int
) -> None:
    with pytest.raises(SystemExit) as caught:
        dataclasses.replace(PLAIN, num_processes=option).start(calls.train, recipe(in_recipe), "demo")
    assert caught.value.code == 75
    assert calls.groups == [expected]
    assert calls.trained == []


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_rank_of_a_launcher_starts_no_other_and_only_the_first_one_renames(
    runs: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    for name, value in zip((*group.PLACE, *group.MEETING), ("2", rank, rank, "here", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    old_run(runs)
    with pytest.raises(SystemExit) as caught:
        dataclasses.replace(PLAIN, fresh=True).start(calls.train, recipe(2), "demo")
    assert caught.value.code == 0
    assert calls.groups == []
    assert [folder for _, folder in calls.trained] == [runs / "demo"]
    assert (runs / "demo.old-1").exists() == (rank == "0")


def test_fresh_keeps_the_old_run_under_another_name_and_says_so(
    runs: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    old_run(runs)
    dataclasses.replace(PLAIN, fresh=True).start(calls.train, recipe(), "demo")
    assert (runs / "demo.old-1" / "recipe.yaml").read_text() == "name: old\n"
    assert capsys.readouterr().err == f"mu: {runs}/demo is now {runs}/demo.old-1\n"


def test_a_job_starts_over_once_however_often_it_is_queued_again(
    runs: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    old_run(runs)
    in_job = dataclasses.replace(PLAIN, job="17")
    for _ in range(3):
        in_job.start(calls.train, recipe(), "demo")
    assert sorted(os.listdir(runs)) == ["demo", "demo.old-1"]
    assert (runs / "demo.old-1" / "recipe.yaml").is_file()
    assert capsys.readouterr().err == f"mu: {runs}/demo is now {runs}/demo.old-1\n"
    dataclasses.replace(PLAIN, job="18").start(calls.train, recipe(), "demo")  # the same script, sent again
    assert (runs / "demo.old-2").is_dir()
    dataclasses.replace(PLAIN, job="18", fresh=True).start(calls.train, recipe(), "demo")
    assert (runs / "demo.old-3").is_dir()


def test_a_job_that_is_stopped_before_its_run_began_starts_over_when_it_is_queued_again(
    runs: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_run(runs)
    in_job = dataclasses.replace(PLAIN, job="17")
    with monkeypatch.context() as patch:
        patch.setattr(start_module, "write_text", killed)  # the old run is away, and the mark not there yet
        with pytest.raises(KeyboardInterrupt):
            in_job.start(calls.train, recipe(), "demo")
    in_job.start(calls.train, recipe(), "demo")
    assert not (runs / "demo" / "recipe.yaml").exists()
    assert (runs / "demo.old-1" / "recipe.yaml").is_file()


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_without_fresh_an_old_run_stays(runs: Path, calls: Calls) -> None:
    old_run(runs)
    PLAIN.start(calls.train, recipe(), "demo")
    assert [path.name for path in runs.iterdir()] == ["demo"]


@pytest.mark.parametrize("fresh", [True, False])
def test_the_recipe_is_filled_in_after_an_old_run_was_renamed(runs: Path, calls: Calls, fresh: bool) -> None:
    old_run(runs)

    def fill_in(recipe: PretrainRecipe, folder: Path) -> PretrainRecipe:
        return dataclasses.replace(recipe, name="resumed" if (folder / "recipe.yaml").exists() else "new")

    dataclasses.replace(PLAIN, fresh=fresh).start(calls.train, recipe(), "demo", fill_in=fill_in)
    assert calls.trained[0][0].name == ("new" if fresh else "resumed")


@pytest.mark.parametrize("name", ["../other", "/tmp/other", ".", "a\n#SBATCH --uid=0", "-rf", "x" * 101])
@pytest.mark.parametrize("sbatch", [JOB, None])
def test_a_name_that_leads_elsewhere_starts_nothing(
    runs: Path, calls: Calls, name: str, sbatch: JobOptions | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given by `--run`, or by the recipe."""
    for options, default in ((dataclasses.replace(PLAIN, name=name), "demo"), (PLAIN, name)):
        with pytest.raises(MuError, match="run"):
            dataclasses.replace(options, fresh=True, sbatch=sbatch).start(calls.train, recipe(), default)
    assert (calls.trained, os.listdir(runs), capsys.readouterr().out) == ([], [], "")


def test_settings_of_accelerate_are_refused_before_anything_starts(
    runs: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    old_run(runs)
    for processes in (1, 2):
        with pytest.raises(MuError, match=r"^ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is set .*; unset it"):
            dataclasses.replace(PLAIN, fresh=True).start(calls.train, recipe(processes), "demo")
    assert (calls.trained, calls.groups, os.listdir(runs)) == ([], [], ["demo"])


def test_sbatch_prints_a_script_and_touches_nothing(
    runs: Path, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    old_run(runs)
    options = dataclasses.replace(PLAIN, sbatch=dataclasses.replace(JOB, fresh=True), fresh=True)
    options.start(calls.train, recipe(4), "demo", workers=2)
    text = capsys.readouterr().out
    assert ' pretrain demo --fresh-in-job "$SLURM_JOB_ID" &\n' in text
    assert "#SBATCH --job-name=mu-demo\n" in text
    assert "#SBATCH --gpus-per-node=4\n" in text
    assert "#SBATCH --cpus-per-task=12\n" in text
    assert (calls.trained, os.listdir(runs)) == ([], ["demo"])


def test_a_batch_that_the_processes_of_all_nodes_do_not_divide_prints_no_script(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would end after hours in the queue."""
    job = dataclasses.replace(JOB, nodes=3)
    with pytest.raises(MuError, match="x 12 processes"):
        dataclasses.replace(PLAIN, sbatch=job).start(calls.train, recipe(4), "demo")
    assert capsys.readouterr().out == ""
