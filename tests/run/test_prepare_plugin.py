"""What the core does for any plugin: DICOM, leaks, subsets, expected counts, classes of the options."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGLosslessSV1, RLELossless

from medunifier_cli.data.contract import DatasetPlugin, DrawnImage, Drop, FileImage, Plan, Record, Subset
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from medunifier_cli.prepare.prepare import Job, prepare
from tests.unit.data.images.test_dicom import RAMP12, body, make


def bars(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A drawn image."""
    return np.tile(np.arange(size, dtype=np.uint8) * 3, (size, 1))


class Small(DatasetPlugin):
    """Says whatever a test has put into it."""

    name = "small"
    title = "A test's own"
    classes: ClassVar[tuple[str, ...]] = ("Edema", "Pneumonia")

    def __init__(self, records: list[Record | Drop], **plan: Any) -> None:
        self.made = records
        self.said = plan

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        def stream() -> Iterator[Record | Drop]:
            yield from self.made

        return Plan(stream(), total=len(self.made), **self.said)


def record(i: int, split: str = "train", **changes: Any) -> Record:
    fields: dict[str, Any] = {"key": f"k{i}", "subject": f"p{i}", "study": "s", "source": f"{i}.dcm"}
    fields |= {"image": DrawnImage(bars)} | changes
    return Record(split=split, **fields)


def run(plugin: DatasetPlugin, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    (raw / "something").touch()
    settings: dict[str, Any] = {"size": 32, "shard_size": 4} | changes
    manifest = prepare(Job(plugin, raw, tmp_path / "out", {}, **settings))
    assert manifest is not None
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    return manifest


def test_dicom_is_decoded_and_its_inversion_noted(tmp_path: Path) -> None:
    made: list[Record | Drop] = []
    for i, kind in enumerate(("MONOCHROME1", "MONOCHROME2")):
        (tmp_path / f"{i}.dcm").write_bytes(
            body(make(RAMP12, kind=kind, WindowCenter=2048, WindowWidth=4096))
        )
        made.append(record(i, image=FileImage(tmp_path / f"{i}.dcm")))
    run(Small(made), tmp_path, workers=2)
    shards = Shards.open(tmp_path / "out", "train")
    metas = [shards.meta(i) for i in range(2)]
    assert [meta["inverted"] for meta in metas] == [True, False]
    assert {(m["bit_depth"], m["original_height"], m["original_width"]) for m in metas} == {(12, 48, 64)}


def test_images_that_cannot_be_meant_are_rescaled_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blank = np.full((48, 64), 7, np.uint16)
    beside = {"WindowCenter": 32768, "WindowWidth": 4096}
    datasets = [make(RAMP12), make(RAMP12, **beside), make(blank)]
    for i, dataset in enumerate(datasets):
        (tmp_path / f"{i}.dcm").write_bytes(body(dataset))
    made: list[Record | Drop] = [record(i, image=FileImage(tmp_path / f"{i}.dcm")) for i in range(3)]
    manifest = run(Small(made), tmp_path)
    listed = [json.loads(line) for line in (tmp_path / "out" / "rescaled.jsonl").read_bytes().splitlines()]
    why = "100% of the pixels black as the header has it"
    assert listed == [{"source": "1.dcm", "key": "k1", "detail": why, "split": "train"}]
    assert (manifest["rescaled"]["lines"], manifest["drops"]) == (1, {"blank": 1})
    assert "warning: the grey levels of 1 of the images cannot be meant" in capsys.readouterr().err
    shards = Shards.open(tmp_path / "out", "train")
    assert shards.image(0) == shards.image(1)
    assert [shards.meta(i).get("rescaled") for i in range(2)] == [None, why]
    # The second call decodes nothing and lists the same, from the receipts.
    before = (tmp_path / "out" / "rescaled.jsonl").read_bytes()
    assert run(Small(made), tmp_path) == manifest
    assert (tmp_path / "out" / "rescaled.jsonl").read_bytes() == before


def test_a_missing_decoder_is_reported_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(RAMP12)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    (tmp_path / "x.dcm").write_bytes(body(dataset))
    monkeypatch.setattr("pydicom.pixels.common.CoderBase.is_available", False)
    monkeypatch.setattr("medunifier_cli.prepare.render.image_from", None)
    made: list[Record | Drop] = [record(0), record(1, image=FileImage(tmp_path / "x.dcm"))]
    with pytest.raises(DataError, match=r"1\.dcm: DICOM compressed as JPEG Lossless.*pip install"):
        run(Small(made), tmp_path)


def test_drawn_images_come_at_the_size_asked_for(tmp_path: Path) -> None:
    run(Small([record(i) for i in range(6)]), tmp_path, workers=2)
    body_of, _ = Shards.open(tmp_path / "out", "train").read(5)
    (tmp_path / "x.png").write_bytes(body_of)
    assert (np.array(Image.open(tmp_path / "x.png")) == bars(32)).all()


def test_a_leaking_split_is_an_error_unless_the_options_ask_for_it(tmp_path: Path) -> None:
    made: list[Record | Drop] = [record(0), record(1, "test", subject="p0")]
    with pytest.raises(DataError, match="a patient in two splits"):
        run(Small(made), tmp_path)
    assert run(Small(made, allow_shared_subjects=True), tmp_path)["shared_subjects"] == 1


SECRET = "Right-sided pneumothorax of Mr Smith"


@pytest.mark.parametrize("where", ["plan", "records"])
def test_an_unforeseen_error_is_laid_to_the_line_of_the_plugin(tmp_path: Path, where: str) -> None:
    class Broken(Small):
        def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
            if where == "plan":
                Path(raw, SECRET).read_text()  # the first of both
            return Plan(self.stream(raw))

        def stream(self, raw: Path) -> Iterator[Record | Drop]:
            yield record(0)
            Path(raw, SECRET).read_text()

    line = next(
        n
        for n, text in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), 1)
        if "SECRET).read_text()" in text and ("the first" in text) == (where == "plan")
    )
    with pytest.raises(DataError) as caught:
        run(Broken([]), tmp_path)
    wanted = f"data set plugin `small`: unexpected FileNotFoundError in test_prepare_plugin.py:{line}; "
    assert str(caught.value).startswith(wanted)
    assert "Smith" not in str(caught.value)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_list_of_records_does_as_well(tmp_path: Path) -> None:
    class Listed(Small):
        def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
            return Plan(self.made)  # type: ignore[arg-type]

    assert run(Listed([record(0), record(1)]), tmp_path)["samples"] == 2


def test_a_misspelt_split_or_label_of_a_plugin_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1\.dcm: split 'val' is none of train, valid, test"):
        run(Small([record(0), record(1, "val")]), tmp_path)
    with pytest.raises(DataError, match="labels edema: none of the classes; and no record has a label Edema"):
        run(Small([record(0, labels={"edema": 1.0, "Pneumonia": 0.0})]), tmp_path)
    assert run(Small([record(0, "val")], splits=("val",)), tmp_path)["samples"] == 1


def test_subsets_expected_counts_and_warnings_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [record(0), record(1, image=FileImage(tmp_path / "none")), Drop("filtered: lateral view", "x")]
    subset = Subset(["k0", "k1"], "drawn by hand", seed=5)
    plugin = Small(made, subsets={"5x200": subset}, expected={"all": 1000}, warnings=["views are guessed"])
    manifest = run(plugin, tmp_path)
    assert manifest["subsets"]["5x200"] == {
        "rule": "drawn by hand", "seed": 5, "n": 2, "keys": ["k0", "k1"], "not_written": ["k1"],
    }  # fmt: skip
    assert manifest["drops"] == {"filtered: lateral view": 1, "missing": 1}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "warning: views are guessed"
    assert lines[-1] == "warning: found 1 of about 1,000 images: is the download complete?"


def test_classes_of_the_options_are_the_ones_counted_and_loaded(tmp_path: Path) -> None:
    labels = [{"Edema": 1.0, "Consolidation": None}, {"Edema": 0.0, "Consolidation": 1.0}, {"Edema": None}]
    plugin = Small(
        [record(i, labels=said) for i, said in enumerate(labels)], classes=("Consolidation", "Edema")
    )
    manifest = run(plugin, tmp_path)
    assert manifest["splits"]["train"]["classes"] == {"Consolidation": 1, "Edema": 1}
    shards = Shards.open(tmp_path / "out", "train")
    assert shards.class_indices(plugin).tolist() == [1, 0, -1]
    assert plugin.classes == ("Edema", "Pneumonia")


def test_a_split_that_is_wholly_rejected_leaves_no_shard(tmp_path: Path) -> None:
    made: list[Record | Drop] = [record(i) for i in range(3)]
    made += [record(9, "test", image=FileImage(tmp_path / "none"))]
    assert list(run(Small(made), tmp_path)["splits"]) == ["train"]
    with pytest.raises(DataError, match="no split 'test'; available: train"):
        Shards.open(tmp_path / "out", "test")


def test_plain_lines_tell_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medunifier_cli.terminal.progress.PLAIN_EVERY", 0)
    run(Small([record(i) for i in range(20)]), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"row 16/20  0 rejected  \S+ images/s  ETA \S+", line) for line in lines)
