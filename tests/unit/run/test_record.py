"""A run's folder belongs to one recipe, and one process at a time trains it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.errors import CheckpointError
from medunifier_cli.recipe.load import dump_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run import record
from medunifier_cli.run.record import FREE, Run
from tests import warm
from tests.tiny import tiny_recipe


def begin(run: Run, recipe: PretrainRecipe, *command: str) -> None:
    run.begin(recipe, {"phantom": {"manifest": "abc"}}, ["mu", *command])


def test_every_start_of_a_run_is_noted(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "a")
    begin(run, tiny_recipe(), "pretrain", "full")
    begin(run, tiny_recipe(), "pretrain", "full", "--run", "a")
    provenance = json.loads(run.provenance.read_text())
    assert [start["command"][1:] for start in provenance["starts"]] == [
        ["pretrain", "full"],
        ["pretrain", "full", "--run", "a"],
    ]
    assert provenance["data"] == {"phantom": {"manifest": "abc"}}
    assert {"torch", "numpy"} <= provenance["starts"][0]["versions"].keys()
    assert run.recipe.read_text() == dump_recipe(tiny_recipe())


def test_another_recipe_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    with pytest.raises(CheckpointError) as error:
        begin(run, tiny_recipe("optim.peak_lr=0.5", "train.seed=9", "train.keep=7"))
    message = str(error.value)
    assert "optim.peak_lr was 0.0001, now 0.5, train.seed was 0, now 9;" in message
    assert "keep" not in message, "free keys are no difference"
    assert "--name" in message
    assert "--fresh" in message
    assert "\n" not in message
    assert len(json.loads(run.provenance.read_text())["starts"]) == 1


def test_only_three_differences_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    changes = (
        "optim.peak_lr=0.5",
        "train.seed=9",
        "objectives.itg=2.0",
        "objectives.tig=0.5",
        "train.steps=9",
    )
    with pytest.raises(CheckpointError, match=r"itg .*tig .*peak_lr was 0\.0001, now \S+ and 2 more;"):
        begin(run, tiny_recipe(*changes))


def start_on(run: Run, folder: str, manifest: str, **splits: str) -> None:
    facts = {"shards": folder, "manifest": manifest, **({"splits": splits} if splits else {})}
    run.begin(tiny_recipe(), {"phantom": facts}, ["mu", "pretrain"])


def test_other_data_under_a_run_are_refused_with_both_ways_out(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    start_on(run, "/data/shards", "m1", train="t1", valid="v1")
    before = run.provenance.read_bytes()
    for split, now in (("train", {"train": "t2", "valid": "v1"}), ("valid", {"train": "t1", "valid": "v2"})):
        with pytest.raises(CheckpointError) as error:
            start_on(run, "/data/shards", "m2", **now)
        (line,) = str(error.value).splitlines()
        assert line.startswith(
            f"/data/shards: split '{split}' of phantom has changed since {run.folder} was started"
        )
        assert "put those shards back" in line
        assert "--name" in line
        assert line.endswith("--fresh")
        assert run.provenance.read_bytes() == before, "the hash to compare with stays"
    start_on(run, "/data/shards", "m1", train="t1", valid="v1")


def test_the_same_data_elsewhere_are_the_same(tmp_path: Path) -> None:
    """A run that was moved with its shards; and a manifest that names a new subset, for the same splits."""
    run = Run(tmp_path / "a")
    start_on(run, "/data/shards", "m1", train="t1")
    start_on(run, "/elsewhere", "m2", train="t1")
    assert json.loads(run.provenance.read_text())["data"]["phantom"] == {
        "shards": "/data/shards", "manifest": "m1", "splits": {"train": "t1"},
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="/elsewhere: split 'train'"):
        start_on(run, "/elsewhere", "m1", train="t2")


def test_data_of_a_run_of_an_earlier_version_are_compared_by_their_manifest(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    start_on(run, "/data/shards", "m1")
    with pytest.raises(CheckpointError, match="phantom has changed since"):
        start_on(run, "/data/shards", "m2", train="t1")
    start_on(run, "/data/shards", "m1", train="t1")
    with pytest.raises(CheckpointError, match="split 'train'"):  # noted by then
        start_on(run, "/data/shards", "m1", train="t2")


def test_a_start_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    dead = "0" * 7 + "1"
    old = [
        run.folder / f"provenance.json.{dead}-1-1-0.tmp",
        run.results / ".reports-phantom-test.jsonl.4711",
        run.folder / "page" / "search" / "images" / f"0001.png.{dead}-1-1-0.tmp",
    ]
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a report")
        os.utime(path, (0, 0))
    for name in (".writing-step-00000010", ".deleting-step-00000005"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "model.safetensors").write_bytes(b"half")
    (run.checkpoints / "step-00000005").mkdir()
    begin(run, tiny_recipe())
    assert [path for path in old if path.exists()] == []
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000005"]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "a" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"\.lock: cannot be written"), Run(tmp_path / "a").locked():
        pass
    assert (tmp_path / "precious").read_text() == "kept"


CHANGES = {
    "name": "other", "data.workers": "0", "data.shards": "/elsewhere", "train.processes": "3",
    "train.log_every": "7", "train.valid_every": "7", "train.valid_batches": "7",
    "data.features": "cached", "train.patience": "7",
    "train.checkpoint_every": "7", "train.keep": "7", "train.tensorboard": "false",
    "train.trackers": "[wandb]", "train.project": "chest", "train.tracker_reports": "2",
    "train.skip_limit": "7", "train.compile": "never",
    "train.timeout": "7", "train.change_contrast": "true",
}  # fmt: skip


@pytest.mark.parametrize("key", FREE)
def test_keys_that_change_no_weight_may_change(tmp_path: Path, key: str) -> None:
    needed = ("train.best=loss", "model.vit.frozen=true")  # by patience, and by features
    run, changed = Run(tmp_path / "a"), tiny_recipe(*needed, f"{key}={CHANGES[key]}")
    recipe = tiny_recipe(*needed)
    assert dump_recipe(changed) != dump_recipe(recipe), "the key exists and has another value"
    begin(run, recipe)
    begin(run, changed)


def test_a_run_that_was_begun_under_an_old_key_is_the_same_run(tmp_path: Path) -> None:
    run, recipe = Run(tmp_path / "a"), tiny_recipe()
    begin(run, recipe)
    old = run.recipe.read_text().replace("valid_every:", "validate_every:")
    assert old != run.recipe.read_text()
    run.recipe.write_text(old)
    begin(run, recipe)
    begin(run, tiny_recipe("train.valid_every=9"))
    with pytest.raises(CheckpointError, match=r"train\.seed was 0, now 1;"):
        begin(run, tiny_recipe("train.seed=1"))


def test_a_key_may_be_free_for_one_start_and_its_facts_are_kept(tmp_path: Path) -> None:
    run, data = Run(tmp_path / "a"), {"phantom": {"manifest": "abc"}}
    assert run.last_start() == {}
    run.begin(tiny_recipe(), data, ["mu"], more={"ranks": 2})
    assert run.last_start()["ranks"] == 2
    changed = tiny_recipe("train.micro_batch=2")
    run.begin(changed, data, ["mu"], free=("train.micro_batch",), more={"ranks": 4})
    assert run.last_start()["ranks"] == 4
    with pytest.raises(CheckpointError, match=r"train\.micro_batch was"):
        run.begin(changed, data, ["mu"])


def test_a_folder_that_is_no_run_is_not_set_aside(tmp_path: Path) -> None:
    """`--fresh --run NAME` where NAME is a folder of somebody's own."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"a holds no run \(it has no recipe\.yaml\)"):
        Run(folder).set_aside()
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_what_a_start_that_was_killed_early_leaves_is_set_aside(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    with run.locked():
        pass
    assert run.set_aside() == tmp_path / "a.old-1"


def test_an_old_run_is_set_aside_under_a_free_name(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    assert run.set_aside() is None
    for number in (1, 2):
        begin(run, tiny_recipe())
        assert run.set_aside() == tmp_path / f"a.old-{number}"
        assert not run.folder.exists()


LOCK = """
import sys
from pathlib import Path
from medunifier_cli.run import record
record.LOCK_PATIENCE = 0.0
with record.Run(Path(sys.argv[1])).locked(enabled=sys.argv[2] == "yes"):
    print("trained")
"""


def other_process(folder: Path, enabled: str) -> subprocess.CompletedProcess[str]:
    return warm.run(["-c", LOCK, folder, enabled])


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LOCK_PATIENCE", 0.0)
    with Run(tmp_path / "a").locked():
        refused = other_process(tmp_path / "a", "yes")
        assert refused.returncode == 1
        assert f"{tmp_path / 'a'}: another process is training this run" in refused.stderr
        # the other ranks of the same run take no lock: the main one holds it for all
        assert other_process(tmp_path / "a", "no").stdout == "trained\n"
    assert other_process(tmp_path / "a", "yes").stdout == "trained\n"


def test_a_run_that_is_trained_is_not_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LOCK_PATIENCE", 0.0)
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    with run.locked(), pytest.raises(CheckpointError, match="another process is training this run"):
        Run(tmp_path / "a").set_aside()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_who_waited_for_the_lock_of_a_run_that_was_set_aside_locks_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    flock = fcntl.flock
    waited: list[Path | None] = []

    def after_the_other(*words: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        waited.append(Run(tmp_path / "a").set_aside())
        flock(*words)

    monkeypatch.setattr(fcntl, "flock", after_the_other)
    with run.locked():
        assert waited == [tmp_path / "a.old-1"]
        assert other_process(tmp_path / "a", "yes").returncode == 1, "the lock is that of the new folder"


def test_a_rank_without_the_lock_makes_no_folder(tmp_path: Path) -> None:
    with Run(tmp_path / "a").locked(enabled=False):
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Lustre without -o flock, NFS without lockd, and others."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with Run(tmp_path / "a").locked():
        (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mu: {tmp_path / 'a'}: the file system has no locks ({os.strerror(number)}); ")


LOWER = ("optim.peak_lr=5e-5", "optim.warmup_lr=0")


def test_a_run_that_ended_because_of_nan_may_go_on_with_lower_rates(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    with pytest.raises(CheckpointError, match=r"optim\.peak_lr was 0\.0001, now 5e-05"):
        begin(run, tiny_recipe(*LOWER))  # not without need
    begin(run, tiny_recipe())
    run.note_not_finite(7)
    for other in ("optim.peak_lr=2e-4", "train.seed=9", "optim.clip_norm=0", "optim.beta1=0.5"):
        with pytest.raises(CheckpointError, match="was started with another recipe"):
            begin(run, tiny_recipe(*LOWER, other))
    begin(run, tiny_recipe())  # as it would end again, the rates may still be lowered after it
    begin(run, tiny_recipe(*LOWER, "optim.clip_norm=0.5"))
    starts = json.loads(run.provenance.read_text())["starts"]
    assert [start.get("not_finite") for start in starts] == [None, {"step": 7, "dead_end": ""}, None, None]
    assert starts[-1]["lowered"] == {
        "optim.clip_norm": [1.0, 0.5], "optim.peak_lr": [1e-4, 5e-5], "optim.warmup_lr": [1e-5, 0.0],
    }  # fmt: skip
    begin(run, tiny_recipe(*LOWER, "optim.clip_norm=0.5"))  # from now on that is the recipe
    with pytest.raises(CheckpointError, match=r"optim\.peak_lr was 5e-05, now 0\.0001"):
        begin(run, tiny_recipe())
    with pytest.raises(CheckpointError, match=r"optim\.peak_lr was 5e-05, now 1e-05"):
        begin(run, tiny_recipe(*LOWER, "optim.clip_norm=0.5", "optim.peak_lr=1e-5"))  # once for each end


def test_a_run_of_a_version_without_some_keys_goes_on(tmp_path: Path) -> None:
    """What it did then is the default now; any other value is another recipe."""
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    old = [line for line in run.recipe.read_text().splitlines(True) if "clip_norm" not in line]
    run.recipe.write_text("".join(old))
    begin(run, tiny_recipe())
    with pytest.raises(CheckpointError, match=r"optim\.clip_norm was 1\.0, now 2\.0"):
        begin(run, tiny_recipe("optim.clip_norm=2.0"))


def test_a_checkpoint_that_led_nowhere_is_refused_once_the_rates_are_lower(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    assert run.dead_ends() == set()
    begin(run, tiny_recipe())
    run.note_not_finite(7, "abc")
    begin(run, tiny_recipe())
    assert run.dead_ends() == set(), "with the same rates it may have been the data"
    begin(run, tiny_recipe(*LOWER))
    assert run.dead_ends() == {"abc"}
    run.note_not_finite(5, "def")
    begin(run, tiny_recipe(*LOWER))
    assert run.dead_ends() == {"abc"}


def test_a_start_that_was_killed_while_it_lowered_the_rates_may_be_made_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    begin(run, tiny_recipe())
    run.note_not_finite(7, "abc")
    old = run.recipe.read_text()
    begin(run, tiny_recipe(*LOWER))
    run.recipe.write_text(old)
    begin(run, tiny_recipe(*LOWER))
    assert run.recipe.read_text() != old
    assert run.dead_ends() == {"abc"}
