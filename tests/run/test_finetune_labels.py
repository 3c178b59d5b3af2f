"""`mu finetune` on labelled images without reports, and on labels that nothing can be learned from."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from medunifier_cli.errors import MuError
from tests.run.finetune_runs import FinetuneRuns


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> FinetuneRuns:
    return FinetuneRuns(tmp_path_factory.mktemp("runs"))


def write_labelled(folder: Path, counts: Mapping[str, Mapping[str, int]]) -> Path:
    """Images without any text, labelled as RSNA's are: split -> class -> how many."""
    folder.mkdir()
    for split, classes in counts.items():
        with webdataset.TarWriter(str(folder / f"{split}-000000.tar")) as writer:
            for name, count in classes.items():
                for i in range(count):
                    level = 200 if name == "Pneumonia" else 60
                    png = io.BytesIO()
                    Image.fromarray(np.full((32, 32), level + i, np.uint8)).save(png, "PNG")
                    labels = {other: float(other == name) for other in ("Pneumonia", "Normal")}
                    meta = {"labels": labels, "subject": f"{split}{name}{i}"}
                    key = f"{split}-{name}-{i}"
                    writer.write({"__key__": key, "png": png.getvalue(), "json": json.dumps(meta).encode()})
    return folder


BOTH = {"Pneumonia": 6, "Normal": 10}


def test_images_without_reports(runs: FinetuneRuns, tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "rsna", {"train": BOTH, "valid": BOTH, "test": BOTH})
    plain = ("data.dataset=rsna", "model.loss=", "model.metric=")
    result = runs.tune(tmp_path / "run", *plain, shards=shards)
    assert (result["n"], result["classes"]) == (16, ["Pneumonia", "Normal"])
    assert result["best"]["metric"] == "auroc"  # RSNA's headline
    assert result["confusion"] is not None


@pytest.mark.parametrize(
    ("counts", "overrides", "said"),
    [
        (
            {"train": {"Normal": 9}},
            (),
            "split 'train': all 9 samples have one class, Normal; there is nothing",
        ),
        ({"test": {"Pneumonia": 3}}, (), "split 'test': all 3 samples have one class, Pneumonia"),
        ({"valid": {}}, (), "no split 'valid'; available: test, train"),
        ({}, ("data.fraction=0.1",), None),
        ({}, ("data.fraction=0.06",), "no sample of Pneumonia among 1; use a larger data.fraction"),
        ({}, ("model.head=lineer",), "no head `lineer`; did you mean `linear`?"),
        ({}, ("data.dataset=rsnaa",), "no data set `rsnaa`; did you mean `rsna`?"),
        (
            {},
            ("data.dataset=siim",),
            "no sample of split 'train' has a label to learn; is data.dataset the data set",
        ),
        ({}, ("data.train=exam",), "no split 'exam'"),
    ],
)
def test_what_cannot_be_learned_is_one_line_and_leaves_no_run(
    runs: FinetuneRuns, tmp_path: Path, counts: Any, overrides: tuple[str, ...], said: str | None
) -> None:
    splits = {**dict.fromkeys(("train", "valid", "test"), BOTH), **counts}
    shards = write_labelled(tmp_path / "rsna", {name: classes for name, classes in splits.items() if classes})
    plain = ("data.dataset=rsna", "model.loss=", "model.metric=", *overrides)
    if said is None:
        assert runs.tune(tmp_path / "run", *plain, shards=shards)["train"]["n"] == 2
        return
    with pytest.raises(MuError) as caught:
        runs.tune(tmp_path / "run", *plain, shards=shards)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()
