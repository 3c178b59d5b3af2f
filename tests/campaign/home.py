"""A small world for trials: data, a pre-training run, priors; and the calls of `mu` that are tried in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaign import forked
from tests.campaign.state import State, differences, state_of

REACHED = "reached for the network"
"""What `writes.c` says of a connection to another machine."""
RUN = Path(__file__).parents[1] / "run"
PRETRAIN, PRIORS = str(RUN / "small_phantom.yaml"), str(RUN / "small_priors.yaml")
LOOP = (
    "train.steps=6",
    "train.valid_every=3",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "train.keep=1",
    "train.threads=1",
    "train.tensorboard=false",
)
TUNE = ("train.global_batch=8", "data.workers=0", "model.head=linear", 'train.precision="no"')
SIZES = ("train=24", "valid=12", "test=12")


def options(*values: str) -> list[str]:
    """`-o` for each value."""
    return [word for value in values for word in ("-o", value)]


@dataclass(frozen=True)
class Case:
    """A verb, and what it starts from."""

    name: str
    words: Sequence[str]
    ranks: int = 1
    training: bool = True
    """Whether Ctrl-C saves a checkpoint and ends with 75."""
    without: Sequence[str] = field(default_factory=tuple)
    """Parts of the home that are removed first."""


def tune(recipe: str, run: str, *more: str) -> list[str]:
    return ["finetune", recipe, "--run", "base", "--name", run, *options(*TUNE, *LOOP, *more)]


CASES = (
    Case(
        "prepare",
        ["prepare", "phantom", "--size", "32", "--shard-size", "6", "--workers", "1", *options(*SIZES)],
        training=False,
        without=("data",),
    ),
    Case(
        "prepare, 2 workers",
        ["prepare", "phantom", "--size", "32", "--shard-size", "6", "--workers", "2", *options(*SIZES)],
        training=False,
        without=("data",),
    ),
    Case("pretrain", ["pretrain", PRETRAIN, "--name", "new", *options(*LOOP)]),
    Case(
        "pretrain, 1 loader worker",
        ["pretrain", PRETRAIN, "--name", "new", *options(*LOOP, "data.workers=1")],
    ),
    Case(
        "pretrain, 2 ranks",
        ["pretrain", PRETRAIN, "--name", "new", "--num-processes", "2", *options(*LOOP)],
        ranks=2,
    ),
    Case("fit-prior", ["fit-prior", PRIORS, "--run", "base", "--name", "new", *options(*LOOP)]),
    Case("finetune", tune("finetune-demo", "new")),
    Case("finetune, 2 ranks", [*tune("finetune-demo", "new"), "--num-processes", "2"], ranks=2),
    Case("finetune, frozen", tune("probe-demo", "new")),
    Case(
        "synthesize",
        ["synthesize", "--run", "priors", "--n", "6", "--batch", "2", "--out", "made"],
        training=False,
    ),
    Case(
        "report",
        ["report", "--run", "base", "--split", "test", "--sample", "greedy", "--max-tokens", "12"],
        training=False,
    ),
    Case("retrieve", ["retrieve", "--run", "base", "--split", "test", "--rerank", "4"], training=False),
    Case("zeroshot", ["zeroshot", "--run", "base", "--split", "test"], training=False),
)
BY_NAME = {case.name: case for case in CASES}


class World:
    """The home that trials copy, and for each case what an undisturbed call makes of it."""

    def __init__(self, work: Path, checked: bool = True) -> None:
        self.work, self.checked = work, checked
        self.home = work / "home"
        memory = Path("/dev/shm")
        base = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
        # trials need no disk that outlives them; a failing one is copied to the work folder
        for old in base.glob("mu-campaign-*-*"):  # of a campaign that was killed
            if not Path("/proc", old.name.split("-")[2]).exists():
                shutil.rmtree(old, ignore_errors=True)
        self.scratch = Path(tempfile.mkdtemp(prefix=f"mu-campaign-{os.getpid()}-", dir=base))
        self._calm: dict[str, tuple[forked.Ended, State]] = {}
        if not (self.work / "home.built").exists():
            self._build()

    def _build(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)
        made = self.scratch / "home"
        made.mkdir()
        steps = [
            ["prepare", "phantom", "--size", "32", "--shard-size", "12", *options(*SIZES)],
            ["pretrain", PRETRAIN, "--name", "base", *options("train.steps=2", "train.keep=1", "data.test=")],
        ]
        for words in steps:
            self._must(words, made)
        forked.in_child(lambda: _scatter_codes(made))
        self._must(["fit-prior", PRIORS, "--run", "base", "--name", "priors", *options(*LOOP)], made)
        shutil.copytree(made, self.home)
        (self.work / "home.built").touch()

    @staticmethod
    def _must(words: Sequence[str], folder: Path) -> None:
        ended = forked.run(words, folder)
        if ended.code:
            raise RuntimeError(f"mu {' '.join(words)} ended with {ended.code}: {ended.output[-2000:]}")

    def copy(self, name: str, case: Case) -> Path:
        """A new copy of the home for one trial of a case."""
        folder = self.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.home, folder)
        for part in case.without:
            shutil.rmtree(folder / part)
        return folder

    def calm(self, case: Case) -> tuple[forked.Ended, State]:
        """How an undisturbed call ends, and the state it leaves; two of them must be equal if `checked`."""
        if case.name not in self._calm:
            found = []
            for _ in range(1 + self.checked):
                folder = self.copy(f"calm-{os.getpid()}", case)
                ended = forked.run(case.words, folder)
                if REACHED in ended.output:
                    raise RuntimeError(f"{case.name}: {REACHED}")
                if ended.code:
                    raise RuntimeError(
                        f"{case.name}: undisturbed, ended with {ended.code}: {ended.output[-2000:]}"
                    )
                found.append((ended, state_of(folder)))
                self.remove(folder)
            unequal = differences(found[0][1], found[-1][1])
            if unequal:
                raise RuntimeError(f"{case.name}: two undisturbed calls differ: {unequal[:5]}")
            self._calm[case.name] = found[-1]
        return self._calm[case.name]

    def remove(self, folder: Path) -> None:
        """Delete a trial's folder and its outputs."""
        shutil.rmtree(folder, ignore_errors=True)
        for path in self.scratch.glob(f"{folder.name}.*"):
            path.unlink(missing_ok=True)

    def keep(self, folder: Path, trial: str) -> Path:
        """Copy the folder of a failing trial to the work folder."""
        kept = self.work / "failures" / "".join(c if c.isalnum() else "-" for c in trial)
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(folder, kept, symlinks=True)
        for path in self.scratch.glob(f"{folder.name}.*.out"):
            shutil.copy(path, kept / path.name.removeprefix(f"{folder.name}."))
        return kept

    def close(self) -> None:
        """Delete what is only of this process."""
        shutil.rmtree(self.scratch, ignore_errors=True)


def _scatter_codes(folder: Path) -> None:
    from tests.run.small_priors import make_codes_differ

    (folder / "runs/model").symlink_to("base")
    os.environ.update(MU_DATA=str(folder / "data"), MU_RUNS=str(folder / "runs"))
    make_codes_differ(folder)
    (folder / "runs/model").unlink()
