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
from click.testing import CliRunner
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score  # type: ignore[import-untyped]

import medunifier
from medunifier_cli.cli import mu
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import MuError
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.stages import finetune_task
from medunifier_cli.stages.check.finetune import check_samples
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
                    png, pixels = io.BytesIO(), np.full((32, 32), level + i, np.uint8)
                    pixels[:2] = [[0], [255]]  # or `mu predict` takes it for a blank film
                    Image.fromarray(pixels).save(png, "PNG")
                    labels = {other: float(other == name) for other in ("Pneumonia", "Normal")}
                    meta = {"labels": labels, "subject": f"{split}{name}{i}"}
                    key = f"{split}-{name}-{i}"
                    writer.write({"__key__": key, "png": png.getvalue(), "json": json.dumps(meta).encode()})
    return folder


BOTH = {"Pneumonia": 6, "Normal": 10}


def test_check_counts_the_samples_of_each_class(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "rsna", {"train": BOTH, "valid": {"Pneumonia": 2, "Normal": 3}})
    # with a sample that says nothing, and one that leaves a class open
    png = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(png, "PNG")
    with webdataset.TarWriter(str(shards / "train-000001.tar")) as writer:
        for key, labels in (("silent", {}), ("open", {"Pneumonia": 1.0, "Normal": None})):
            meta = {"labels": labels, "subject": key}
            writer.write({"__key__": key, "png": png.getvalue(), "json": json.dumps(meta).encode()})
    settings = ["data.dataset=rsna", f"data.shards={shards}", "data.test=", "model.loss=binary_cross_entropy"]
    checks = {one.name: one for one in check_samples(load_recipe("finetune-demo", settings, FinetuneRecipe))}
    assert all(one.ok for one in checks.values())
    assert checks["samples"].result.startswith("17 train, 5 valid; 2 classes, auroc")
    train, valid = checks["classes of train"].result, checks["classes of valid"].result
    assert train == "Pneumonia 7, Normal 10 of 16; 1 left out, which have no label"
    assert valid == "Pneumonia 2, Normal 3"
    assert "-o model.loss=cross_entropy" in checks["loss"].result
    one = [*settings[:-1], "model.loss=cross_entropy"]
    assert "loss" not in {
        one.name for one in check_samples(load_recipe("finetune-demo", one, FinetuneRecipe))
    }
    (problem,) = check_samples(load_recipe("finetune-demo", [*settings, "data.valid=none"], FinetuneRecipe))
    assert (problem.name, problem.ok) == ("samples", False)


def test_images_without_reports(runs: FinetuneRuns, tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "rsna", {"train": BOTH, "valid": BOTH, "test": BOTH})
    plain = ("data.dataset=rsna", "model.loss=", "model.metric=")
    result = runs.tune(tmp_path / "run", *plain, shards=shards)
    assert (result["n"], result["classes"]) == (16, ["Pneumonia", "Normal"])
    assert result["best"]["metric"] == "auroc"  # RSNA's headline
    assert result["confusion"] is not None


@pytest.mark.parametrize("frozen", ["true", "false"])
def test_a_finding_that_is_there_or_not_is_one_output(
    runs: FinetuneRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    """Scores are scikit-learn's on the scores of each image, and own films get the same probabilities."""
    shards = write_labelled(tmp_path / "rsna", {"train": BOTH, "valid": BOTH, "test": BOTH})
    single = prepared_dataset("rsna", shards).with_classes(("Pneumonia",))
    monkeypatch.setattr(finetune_task, "prepared_dataset", lambda *_: single)
    stated = ("data.dataset=rsna", "model.metric=", f"model.freeze={frozen}", "model.balance=true")
    with pytest.raises(MuError, match=r"rsna has a single class \(Pneumonia\).*model\.loss=binary_cross"):
        runs.tune(tmp_path / "refused", *stated, "model.loss=cross_entropy", shards=shards)
    assert not (tmp_path / "refused").exists()
    run = tmp_path / "run"
    result = runs.tune(run, *stated, "model.loss=", shards=shards)
    assert (result["n"], result["classes"], result["confusion"]) == (16, ["Pneumonia"], None)
    rows = [
        json.loads(line)
        for line in (run / "results" / "finetune-rsna-test.samples.jsonl").read_text().splitlines()
    ]
    truth = [row["truth"]["Pneumonia"] for row in rows]
    score = {row["key"]: row["scores"]["Pneumonia"] for row in rows}
    values = {row["name"]: row["value"] for row in result["metrics"]}
    assert sum(truth) == BOTH["Pneumonia"]
    assert values["fine-tuned auroc"] == pytest.approx(roc_auc_score(truth, list(score.values())))
    found = [value >= 0.5 for value in score.values()]
    assert values["fine-tuned micro_f1"] == pytest.approx(f1_score(truth, found, zero_division=0))

    split = Shards.open(shards, "test")
    files = [tmp_path / f"{split.key(row)}.png" for row in (0, 15)]
    for row, file in zip((0, 15), files, strict=True):
        file.write_bytes(split.image(row))
    answers = medunifier.load(run).predict(files)
    assert [answer.probabilities for answer in answers] == [
        {"Pneumonia": pytest.approx(score[file.stem], abs=1e-5)} for file in files
    ]
    assert not any(answer.one_class for answer in answers)
    monkeypatch.setenv("MU_RUNS", str(tmp_path))
    words = ["predict", "--run", "run", "--no-likeness", "--format", "json", *map(str, files)]
    said = CliRunner().invoke(mu, words, catch_exceptions=False)
    (first, second) = json.loads(said.stdout)
    assert first["probabilities"]["Pneumonia"] == pytest.approx(score[files[0].stem], abs=1e-5)
    assert second["found"] == (["Pneumonia"] if score[files[1].stem] >= 0.5 else [])


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
