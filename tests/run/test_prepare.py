"""`mu prepare` as a user runs it, on covid-chestxray downloads in miniature."""

import contextlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from medunifier_cli.cli import mu
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from medunifier_cli.prepare.folder import RECEIPTS
from tests.hand_made import covid_raw, read_covid_csv, write_covid_csv
from tests.run.prepare_covid import call, contents, done, refused, started


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return covid_raw(tmp_path / "raw")


def test_shards_hold_what_the_table_says(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = done(raw, out)
    table = {row["filename"]: row for row in read_covid_csv(raw)}
    seen = 0
    for split, entry in manifest["splits"].items():
        shards = Shards.open(out, split)
        assert len(shards) == entry["samples"]
        for i in range(len(shards)):
            body, meta = shards.read(i)
            row = table[Path(meta["source"]).name]
            original = Image.open(raw / meta["source"]).convert("L")
            expected = np.array(original.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(np.array(Image.open(io.BytesIO(body))).astype(int) - expected).mean() < 1.5
            assert (meta["original_width"], meta["original_height"]) == original.size
            assert (meta["bit_depth"], meta["inverted"], meta["view"]) == (8, False, "PA")
            assert meta["sections"].get("clinical_notes", "") == row["clinical_notes"]
            assert (meta["subject"], meta["text_kind"]) == (row["patientid"], "clinical_notes")
            assert meta["key"] == shards.key(i)
            assert {
                k: v for k, v in shards.label_dict(shards.index["labels"][i]).items() if v is not None
            } == meta["labels"]
            seen += 1
    assert seen == manifest["samples"] == 30


def test_shards_are_plain_webdataset(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(raw, out)
    shards = Shards.open(out, "train")
    urls = [str(out / name) for name in shards.names]
    for i, item in enumerate(webdataset.WebDataset(urls, shardshuffle=False)):
        assert (item["png"], json.loads(item["json"])) == shards.read(i)
        assert item["__key__"] == shards.key(i)
    assert i == len(shards) - 1
    with tarfile.open(urls[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


def test_workers_and_parts_write_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    done(raw, tmp_path / "one")
    done(raw, tmp_path / "many", "--workers", "3")
    first = call(raw, tmp_path / "parts", "--part", "3/3")
    assert "the part that makes the last one writes the manifest" in first.stderr
    assert not (tmp_path / "parts" / "manifest.json").exists()
    for part in ("1/3", "2/3"):
        assert call(raw, tmp_path / "parts", "--part", part).exit_code == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "many") == contents(tmp_path / "parts")


def test_parts_may_run_at_the_same_time(raw: Path, tmp_path: Path) -> None:
    """A job array: whichever is last writes the manifest, and nobody gets in another's way."""
    done(raw, tmp_path / "one", "--shard-size", "4")
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(started(raw, tmp_path / "all", "--part", f"{i}/4")) for i in range(1, 5)]
        assert [part.wait() for part in parts] == [0] * 4
    assert contents(tmp_path / "all") == contents(tmp_path / "one")


def test_running_again_changes_nothing_and_decodes_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done(raw, out)
    before = contents(out)
    monkeypatch.setattr("medunifier_cli.prepare.render.image_from", None)
    done(raw, out)
    assert contents(out) == before


@pytest.mark.parametrize("damage", ["cut", "gone", "half-written"])
def test_a_damaged_shard_is_named_and_made_again(raw: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    done(raw, out)
    before = contents(out)
    shard = out / "train-000001.tar"
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size // 2)
        with pytest.raises(DataError, match=r"train-000001\.tar: .* run `mu prepare covid-chestxray` again"):
            Shards.open(out, "train")
    elif damage == "gone":
        shard.unlink()
        with pytest.raises(DataError, match=r"train-000001\.tar: No such file"):
            Shards.open(out, "train")
    else:
        (out / RECEIPTS / "train-000001.json").unlink()
        (out / "train-000001.tar.tmp").write_bytes(b"half")
    done(raw, out)
    assert contents(out) == before


def test_bad_images_are_listed_and_never_fatal(raw: Path, tmp_path: Path) -> None:
    images = raw / "images"
    whole = (images / "case.0.jpg").read_bytes()
    (images / "case.0.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "case-1.png").write_bytes(b"<html>404</html>")
    (images / "case 2.jpg").unlink()
    out = tmp_path / "out"
    manifest = done(raw, out)
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    found = {line["source"]: line["reason"] for line in lines}
    assert found == {
        "images/case.0.jpg": "truncated", "images/case-1.png": "undecodable", "images/case 2.jpg": "missing",
    }  # fmt: skip
    assert manifest["samples"] == 27
    assert manifest["drops"] == {"missing": 1, "truncated": 1, "undecodable": 1}
    assert "Note" not in (out / "rejects.jsonl").read_text()  # no text of a patient in a list of files


def test_a_rejected_file_that_was_fetched_again_is_taken_in(raw: Path, tmp_path: Path) -> None:
    done(raw, tmp_path / "whole")
    image = raw / "images" / "case-1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])
    out = tmp_path / "out"
    assert done(raw, out)["samples"] == 29
    image.write_bytes(whole)
    assert done(raw, out)["samples"] == 30
    assert contents(out) == contents(tmp_path / "whole")


def test_max_rejects_stops_early_and_what_was_made_stays(raw: Path, tmp_path: Path) -> None:
    for path in sorted((raw / "images").iterdir())[10:]:
        path.unlink()
    line = refused(raw, tmp_path / "out", "--max-rejects", "4")
    assert "5 missing, more than --max-rejects 4; the last one is images/case" in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_nothing_usable_is_an_error(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "images").iterdir():
        path.unlink()
    assert "no image could be used (30 missing); see" in refused(raw, tmp_path / "out")


def test_raw_folders_that_cannot_be_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = refused(tmp_path / "nowhere", out)
    assert "no such folder with the raw data; give --raw" in line
    assert line.rstrip().endswith("`mu prepare covid-chestxray --list` says which files are needed")
    (tmp_path / "raw" / "images").mkdir(parents=True)
    assert "no metadata.csv" in refused(tmp_path / "raw", out)
    (tmp_path / "raw" / "images").rmdir()
    assert "raw is empty; give --raw" in refused(tmp_path / "raw", out)
    write_covid_csv(tmp_path / "raw", [], drop="view")
    assert "metadata.csv: no column view" in refused(tmp_path / "raw", out)


def test_the_raw_folder_is_only_read(raw: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    assert "is inside the raw folder, which is never written to" in refused(raw, raw / "shards")
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before


def test_other_settings_are_not_mixed_in(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(raw, out)
    before = contents(out)
    for args in (["--size", "16"], ["-o", "seed=3"], ["--image-format", "jpg"], ["--shard-size", "7"]):
        assert "was made with other settings" in refused(raw, out, *args)
    assert contents(out) == before


def test_what_differs_is_named_alone(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(raw, out)
    assert "other settings (options.seed: was 0, is 3); choose" in refused(raw, out, "-o", "seed=3")


def test_a_folder_in_which_nothing_was_made_takes_other_settings(raw: Path, tmp_path: Path) -> None:
    images = raw / "images"
    images.rename(raw / "elsewhere")
    assert "no image could be used" in refused(raw, tmp_path / "out")
    (raw / "elsewhere").rename(images)
    done(raw, tmp_path / "out", "-o", "seed=3")
    assert "was made with other settings" in refused(raw, tmp_path / "out")


def test_foreign_shards_are_not_overwritten(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"mine")
    assert "holds train-000000.tar, not made by `mu prepare`" in refused(raw, tmp_path / "out")


def test_changed_raw_data_change_their_shards_alone(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done(raw, out)
    before = contents(out)
    rows = read_covid_csv(raw)
    rows[0]["clinical_notes"] = "Another note."
    write_covid_csv(raw, rows)
    done(raw, out)
    changed = {name for name, body in contents(out).items() if before[name] != body and name.endswith(".tar")}
    assert len(changed) == 1
    write_covid_csv(raw, rows[:10])
    assert done(raw, out)["samples"] == 10
    done(raw, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_jpg_shards(raw: Path, tmp_path: Path) -> None:
    done(raw, tmp_path / "out", "--format", "jpg")
    body, _ = Shards.open(tmp_path / "out", "train").read(0)
    with Image.open(io.BytesIO(body)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (32, 32))


def test_options_are_checked_all_at_once(raw: Path, tmp_path: Path) -> None:
    result = call(
        raw, tmp_path / "out", "-o", "sed=1", "-o", "valid=much", "-o", "undiagnosed=maybe", "-o", "x"
    )
    assert result.exit_code == 1
    assert result.stderr == (
        "mu: -o sed=1: no such option; did you mean seed?; -o valid=much: must be a number; "
        "-o undiagnosed=maybe: must be one of drop, keep; -o x: is not KEY=VALUE\n"
    )


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b"])
def test_an_impossible_part_is_a_usage_error(raw: Path, tmp_path: Path, part: str) -> None:
    assert call(raw, tmp_path / "out", "--part", part).exit_code == 2


def test_the_list_says_what_each_needs_and_where_it_is() -> None:
    result = CliRunner().invoke(mu, ["prepare", "--list"])
    assert result.exit_code == 0
    assert "covid-chestxray: " in result.stdout
    assert "needs: metadata.csv and images/" in result.stdout
    assert "from: https://github.com/ieee8023/covid-chestxray-dataset" in result.stdout
    assert "licence: differs by image" in result.stdout
    assert "cite: Cohen, Morrison and Dao" in result.stdout


def test_summary_and_contact_sheets(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(raw, out)
    manifest = json.loads((out / "manifest.json").read_text())
    for split, entry in manifest["splits"].items():
        assert any(line.split()[:2] == [split, str(entry["samples"])] for line in result.stderr.splitlines())
        with Image.open(out / f"sheet-{split}.png") as sheet:
            pixels = np.array(sheet)
        assert pixels.std() > 20
    assert result.stdout == ""


def test_defaults_lie_under_mu_data(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "covid-chestxray").symlink_to(raw)
    result = CliRunner().invoke(mu, ["prepare", "covid-chestxray", "--size", "16", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "data" / "shards" / "covid-chestxray" / "manifest.json").is_file()
