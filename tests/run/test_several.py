"""Several ranks train one run, several users read it: joined groups, moved runs, foreign runs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medunifier_cli.stages import heldout
from tests import warm
from tests.folders import ROOT
from tests.run import small_run

ANOTHER = 65534
"""A user without any rights: `nobody`."""

# The first call imports what the second one needs: the interpreter may lie where another user cannot read.
AS_ANOTHER_USER = """
import os, sys
from click.testing import CliRunner
from medunifier_cli.cli import mu
def call(*words):
    done = CliRunner().invoke(mu, words, catch_exceptions=False)
    print(done.output)
    assert done.exit_code == 0, done.output
for verb in ("retrieve", "zeroshot"):
    call(verb, "--run", "own", "--split", "test")
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[1]))
print("as another user")
for verb in ("retrieve", "zeroshot"):
    call(verb, "--run", "shared", "--split", "test")
"""


@pytest.fixture
def elsewhere(home: Path) -> Iterator[Path]:
    """Copies of data and run in a folder that everybody can reach; the run is called `own` and `shared`."""
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(home / "data", folder / "data")
        for name in ("own", "shared"):
            shutil.copytree(home / "runs" / "small", folder / "runs" / name)
        yield folder
    finally:
        shutil.rmtree(folder)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_run_that_was_moved_and_renamed_is_measured(elsewhere: Path) -> None:
    code, printed = small_run.call(elsewhere, "retrieve", "--run", "shared", "--split", "test")
    assert code == 0, printed
    assert str(elsewhere) not in (elsewhere / "runs" / "shared" / "recipe.yaml").read_text()
    assert any(name.startswith("results/retrieval") for name in files(elsewhere / "runs" / "shared"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.slow
def test_another_user_reads_a_run_and_leaves_nothing_in_it(elsewhere: Path) -> None:
    for folder in (elsewhere, *elsewhere.rglob("*")):
        folder.chmod(0o755 if folder.is_dir() else 0o644)
    before = files(elsewhere / "runs" / "shared")
    env = {
        **os.environ, "MU_DATA": str(elsewhere / "data"), "MU_RUNS": str(elsewhere / "runs"),
        "OMP_NUM_THREADS": "1", "HOME": str(elsewhere),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, str(ANOTHER)], cwd=ROOT, env=env, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    own, other = done.stdout.split("as another user\n")
    assert "not written" not in own
    numbers = [line for line in own.splitlines() if "@" in line]
    assert len(numbers) > 3
    assert numbers == [line for line in other.splitlines() if "@" in line], "the same numbers"
    shared = elsewhere / "runs" / "shared"
    assert f"mu: {shared}/results/retrieval-phantom-test.json: not written, as this user" in other
    assert files(shared) == before


TUNE = (
    "train.steps=2", "train.global_batch=8", "train.valid_every=1", "train.threads=1", "data.workers=0",
    "model.head=linear", "train.tensorboard=true",
)  # fmt: skip


def joined(home: Path, *words: str) -> tuple[int, str]:
    """`mu WORDS` in two ranks that a launcher has started, as far as their variables tell."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    env = {**os.environ, **group, "MU_DATA": str(home / "data"), "MU_RUNS": str(home / "runs")}
    ranks = [
        warm.start(["-m", "medunifier_cli", *words], env={**env, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    printed = "".join(rank.communicate(timeout=400)[0] for rank in ranks)
    return max(abs(rank.wait()) for rank in ranks), printed


def launched(home: Path, *words: str) -> tuple[int, str]:
    """`mu WORDS` in two ranks that torchrun starts."""
    env = {
        **os.environ, "MU_DATA": str(home / "data"), "MU_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "medunifier_cli", *words],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def tune_joined(home: Path, name: str, start: Callable[..., tuple[int, str]] = joined) -> None:
    """Both ranks measure the held-out split after the last step; the main one alone writes and prints."""
    overrides = [word for override in (*TUNE, f"name={name}") for word in ("-o", override)]
    code, printed = start(home, "finetune", "finetune-demo", "--run", "small", *overrides)
    assert code == 0, printed
    assert printed.count("on 2 cpu processes") == 1, printed
    assert printed.count(", n = 40, trained on ") == 1, printed
    assert (home / "runs" / f"{name}-1" / "results" / "finetune-phantom-test.json").is_file()


def test_ranks_of_a_launcher_measure_together_after_the_last_step(home: Path) -> None:
    tune_joined(home, "tuned")


def test_a_run_is_measured_once_and_two_ranks_measure_what_one_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["pretrain", str(small_run.RECIPE), "-o", "train.steps=2", "-o", "name=whole"]
    assert small_run.call(home, *words)[0] == 0
    result = home / "runs" / "whole" / "results" / "pretraining-phantom-test.json"
    measured = result.read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        for name in ("_reconstruction", "_matching"):
            patch.setattr(heldout, name, refuse)
        code, printed = small_run.call(home, *words)
        assert code == 0, printed
        assert "reconstruction PSNR" in printed, "shown all the same"
        changed = json.loads(measured)
        changed["checkpoint"]["hash"] = "of other weights"
        result.write_text(json.dumps(changed))
        assert small_run.call(home, *words)[0] == 1, "measured again"
    result.unlink()
    code, printed = joined(home, *words)
    assert code == 0, printed
    assert result.read_bytes() == measured
    assert printed.count("/whole, phantom/test, n = 40") == 1, printed


def test_two_ranks_make_the_features_that_one_makes(home: Path) -> None:
    overrides = ["-o", "model.freeze=true"]
    for override in (*TUNE, "train.tensorboard=false", "name=frozen"):
        overrides += ["-o", override]
    cache = home / "runs" / "small" / "cache"
    made = []
    for tune in (small_run.call, joined):
        for path in cache.glob("queries-*.h5"):
            path.unlink()
        shutil.rmtree(home / "runs" / "frozen-1", ignore_errors=True)
        code, printed = tune(home, "finetune", "finetune-demo", "--run", "small", *overrides)
        assert code == 0, printed
        made.append({path.name: path.read_bytes() for path in cache.glob("queries-*.h5")})
    assert len(made[0]) == 3
    assert made[0] == made[1]


@pytest.mark.slow
def test_ranks_of_a_launcher_end_well_every_time(home: Path) -> None:
    """It used to fail in two of three tries."""
    overrides = [word for override in ("train.steps=2", "name=joined") for word in ("-o", override)]
    code, printed = launched(home, "pretrain", str(small_run.RECIPE), *overrides)
    assert code == 0, printed
    assert printed.count("/joined, phantom/test, n = 40") == 1, printed
    for number in range(5):
        tune_joined(home, f"tuned-{number}", launched)
