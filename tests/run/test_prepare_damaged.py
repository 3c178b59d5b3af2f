"""`mu prepare` on a folder whose files were damaged, edited or linked, or that another call works on."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from medunifier_cli.prepare.folder import RECEIPTS
from medunifier_cli.stages.check.shared import check_split, run_check
from tests.hand_made import covid_raw
from tests.run.prepare_covid import call, contents, done, refused
from tests.run.test_prepare_interrupted import HOLD


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw/` and `out/`, to be copied."""
    folder = tmp_path_factory.mktemp("prepared")
    done(covid_raw(folder / "raw", 12), folder / "out")
    return folder


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


def flip(path: Path, where: float) -> None:
    body = bytearray(path.read_bytes())
    body[int(len(body) * where)] ^= 0xFF
    path.write_bytes(bytes(body))


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "index"])
def test_running_it_again_mends_what_was_damaged(home: Path, damage: str) -> None:
    raw, out = home / "raw", home / "out"
    before = contents(out)
    shard = out / "train-000000.tar"
    if damage == "flipped":
        flip(shard, 0.3)
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:3000])
    elif damage == "missing":
        shard.unlink()
    else:
        flip(out / "train.index.npy", 0.9)
    assert contents(out) != before
    result = call(raw, out)
    assert result.exit_code == 0, result.output
    assert contents(out) == before
    assert ("train-000000.tar: its contents have changed; it is made again" in result.stderr) == (
        damage == "flipped"
    )


def test_hashes_name_the_damaged_shards_and_what_mends_them(home: Path) -> None:
    out = home / "out"
    for name in ("train-000000.tar", "train-000001.tar"):
        flip(out / name, 0.3)
    assert "sizes checked" in check_split(out, "train", hashes=False)
    lines = [check.result for check in run_check("shards of train", check_split, out, "train", True)]
    assert lines == [
        f"{out / name}: its contents differ from the manifest; run `mu prepare covid-chestxray` again, which "
        "makes it anew"
        for name in ("train-000000.tar", "train-000001.tar")
    ]


@pytest.mark.parametrize(
    ("held", "asked"), [("1of2", ()), ("1of1", ("--part", "1/2")), ("2of3", ("--part", "1/2"))]
)
def test_calls_that_divide_the_shards_otherwise_are_refused(
    home: Path, held: str, asked: tuple[str, ...]
) -> None:
    lock = home / "out" / RECEIPTS / f"lock-{held}"
    lock.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        line = refused(home / "raw", home / "out", *asked)
        other.kill()
    made = "the whole of it" if held == "1of1" else f"--part {held.replace('of', '/')}"
    assert f"another `mu prepare` is making {made}, beside which" in line
    assert call(home / "raw", home / "out", *asked).exit_code == 0


def test_links_planted_under_names_that_it_writes_are_not_followed(home: Path) -> None:
    raw, out, target = home / "raw", home / "out", home / "precious"
    target.write_text("precious")
    names = ["train-000000.tar.tmp", f"{RECEIPTS}/drops-1of1.jsonl.tmp"]
    names += ["manifest.json", "rejects.jsonl", "train.index.npy", "sheet-train.png", "train-000000.tar"]
    before = contents(out)
    for name in names:
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(target)
    done(raw, out)
    assert target.read_text() == "precious"
    assert contents(out) == before
    assert not [path for path in out.rglob("*") if path.is_symlink() and path.suffix != ".tmp"]


def test_a_planted_lock_or_folder_of_receipts_is_refused(home: Path) -> None:
    raw, out, target = home / "raw", home / "out", home / "precious"
    target.write_text("precious")
    lock = out / RECEIPTS / "lock-1of1"
    lock.unlink()
    lock.symlink_to(target)
    assert "lock-1of1: cannot be written" in refused(raw, out)
    assert target.read_text() == "precious"
    (home / "elsewhere").mkdir()
    shutil.rmtree(out / RECEIPTS)
    (out / RECEIPTS).symlink_to(home / "elsewhere")
    assert f"{RECEIPTS}: is a link, which `mu prepare` does not follow" in refused(raw, out)
    assert not list((home / "elsewhere").iterdir())


EDITS: dict[str, Any] = {
    "counts": lambda r: r["counts"]["views"].update(PA="five"),
    "no-part": lambda r: r["counts"].pop("text"),
    "place": lambda r: r["rows"][0].update(image=[512]),
    "negative": lambda r: r["rows"][0].update(image=[512, -1]),
    "huge": lambda r: r["rows"][0].update(json=[512, 2**40]),
    "label": lambda r: r["rows"][0]["labels"].update({"COVID-19": "a report's words"}),
    "labels": lambda r: r["rows"][0].update(labels=[1, 2]),
    "key": lambda r: r["rows"][0].update(key="a/b"),
    "rejects": lambda r: r.update(rejects=[{"key": 1}]),
    "surrogate": lambda r: r.update(split="\ud800"),
    "rows": lambda r: r.update(rows={}),
}


@pytest.mark.parametrize("edit", sorted(EDITS))
def test_an_edited_receipt_makes_its_shard_anew(home: Path, edit: str) -> None:
    raw, out = home / "raw", home / "out"
    before = contents(out)
    path = out / RECEIPTS / "train-000000.json"
    receipt = json.loads(path.read_text())
    EDITS[edit](receipt)
    path.write_text(json.dumps(receipt))
    done(raw, out)
    assert contents(out) == before


def test_files_of_a_prepared_folder_changed_byte_by_byte_end_in_one_error(home: Path) -> None:
    """Seeded damage to manifest, index and settings: what reads them gives samples or one DataError."""
    out, rng = home / "out", np.random.default_rng(13)
    for name in ("manifest.json", "train.index.npy", "train-000000.tar"):
        whole = (out / name).read_bytes()
        for _ in range(60):
            body = bytearray(whole)
            for place in rng.integers(0, len(body), rng.integers(1, 4)):
                body[place] = rng.choice([0, 0x22, 0x30, 0x5B, 0x7B, 0xFF, int(rng.integers(256))])
            (out / name).write_bytes(
                bytes(body[: rng.integers(1, len(body))] if rng.random() < 0.2 else body)
            )
            try:
                shards = Shards.open(out, "train")
                for i in range(len(shards)):
                    shards.read(i)
            except DataError:
                pass
        (out / name).write_bytes(whole)
