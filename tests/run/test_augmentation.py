"""Augmentation of another data set: priors on its codes, its samples as training rows, training on both."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.checkpoint.priors import on_their_data, restore_priors
from medunifier_cli.data.batch import PackedText
from medunifier_cli.data.shards import Shards
from medunifier_cli.run.record import Run
from tests.miniatures.clinic import PROMPTS, SPLITS, class_of, write_clinic
from tests.run.small_priors import PRETRAIN, PRIORS, call, fit_small_priors


def succeed(root: Path, *arguments: object) -> str:
    code, printed = call(root, *arguments)
    assert code == 0, printed
    return printed


def refused(root: Path, *arguments: object) -> str:
    """The last line, which is the error."""
    code, printed = call(root, *arguments)
    assert code == 1, printed
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run `model` on phantom, and the data set `clinic`, which has classes and no texts."""
    root = fit_small_priors(tmp_path_factory.mktemp("augmentation"))
    table, prompts = write_clinic(root / "raw")
    succeed(
        root, "prepare", "table", "--raw", table, "--name", "clinic", "--size", 32, "-o", f"prompts={prompts}"
    )
    return root


@pytest.fixture(scope="module")
def priors(home: Path) -> str:
    """What fitting priors on the clinic's films printed."""
    return succeed(home, "fit-prior", PRIORS, "--run", "model", "--data", "clinic", "--name", "clinic-priors")


@pytest.fixture(scope="module")
def synthetic(home: Path, priors: str) -> Path:
    """A folder of films of both classes, prepared as the data set `films`."""
    out = home / "films"
    ask = ("synthesize", "--run", "clinic-priors", "--prompts", "given", "--n", 9, "--out", out)
    succeed(home, *ask)
    succeed(home, "prepare", "table", "--raw", out / "samples.csv", "--name", "films", "--size", 32)
    return out


def picture(body: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(body)).convert("L"))


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_codes_are_those_of_the_films_and_of_a_prompt_of_their_class(home: Path, priors: str) -> None:
    assert "no texts; each image has a prompt of its class (ill, well) in place of one" in priors
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_DATA", str(home / "data"))
        patch.setenv("MU_RUNS", str(home / "runs"))
        trained = restore(Run(home / "runs/model"), torch.device("cpu"))
    prompts = {text: name for name, texts in PROMPTS.items() for text in texts}
    features = {}
    for text in prompts:
        ids = PackedText.of([trained.tokenizer.encode(text, trained.recipe.text.max_tokens)], trained.device)
        with torch.no_grad():
            features[text] = trained.model.encode_text(ids)[0].numpy()
    chosen = set()
    with h5py.File(home / "runs/clinic-priors/codes.h5") as file:
        for split, first in (("train", 0), ("valid", SPLITS["train"])):
            keys = [key.decode() for key in file[f"{split}/key"][...]]
            assert keys == [f"film_{n:02d}" for n in range(first, first + SPLITS[split])]
            for key, views in zip(keys, file[f"{split}/text"][...], strict=True):
                for view in views.astype(np.float32):
                    text = min(prompts, key=lambda one: float(np.abs(features[one] - view).max()))
                    assert np.abs(features[text] - view).max() < 1e-2
                    assert prompts[text] == class_of(int(key[-2:]))
                    chosen.add(text)
    assert chosen == set(prompts)


def test_codes_of_another_data_set_are_not_taken_for_these(home: Path, priors: str) -> None:
    ask = ("fit-prior", PRIORS, "--run", "model", "--name", "clinic-priors")
    assert "data.dataset was 'clinic', now ''" in refused(home, *ask)
    assert "data.dataset was 'clinic', now 'phantom'" in refused(home, *ask, "--data", "phantom")
    made_of = json.loads(h5py.File(home / "runs/clinic-priors/codes.h5").attrs["made_of"])
    assert made_of["data set"] == "clinic"
    assert "is complete" in succeed(home, *ask, "--data", "clinic")
    assert "ok       shards of valid" in succeed(home, "check", PRIORS, "-o", "data.dataset=clinic")


def test_labels_without_prompts_are_no_condition(home: Path) -> None:
    table = home / "raw/films.csv"
    succeed(home, "prepare", "table", "--raw", table, "--name", "bare", "--size", 32)
    line = refused(home, "fit-prior", PRIORS, "--run", "model", "--data", "bare", "--name", "bare-priors")
    assert "no texts in split 'train', and no prompts for ill, well" in line
    assert "-o prompts=FILE" in line
    assert not (home / "runs/bare-priors").exists()


@pytest.mark.parametrize("how", [("--reconstruct", "valid"), ("--reconstruct", "--split", "valid")])
def test_films_of_another_data_set_are_reconstructed_and_measured(home: Path, how: tuple[str, ...]) -> None:
    out = home / "-".join(("again", *how))
    said = succeed(home, "synthesize", *how, "--data", "clinic", "--run", "model", "--out", out)
    shards = Shards.open(home / "data/shards/clinic", "valid")
    quality = []
    for line in map(json.loads, (out / "samples.jsonl").read_text().splitlines()):
        real = picture(shards.image(line["sample"])) / 255.0
        assert line["key"] == shards.key(line["sample"])
        error = np.mean((real - np.asarray(Image.open(out / line["image"])) / 255.0) ** 2)
        quality.append(-10 * np.log10(error))
        assert line["psnr"] == pytest.approx(quality[-1], abs=2e-3)
    films = np.stack([picture(shards.image(row)) for row in range(len(shards))]) / 255.0
    errors = np.mean((films - films.mean(axis=0)) ** 2, axis=(1, 2))
    assert len(quality) == SPLITS["valid"]
    assert "clinic/valid, n = 10" in said
    row = next(line for line in said.splitlines() if "reconstruction PSNR" in line)
    assert f"{np.mean(quality):.3f}" in row
    assert f"{np.mean(-10 * np.log10(errors)):.3f}" in row
    assert (out / "contact.png").is_file()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--data", "clinic"), "say what --reconstruct takes"),
        (("--reconstruct", "test", "--split", "valid"), "two splits"),
        (("--reconstruct", "--class", "ill"), "--class requests synthetic images"),
    ],
)
def test_options_that_contradict_each_other(home: Path, words: tuple[str, ...], part: str) -> None:
    code, printed = call(home, "synthesize", *words)
    assert code == 2
    assert part in printed


def test_a_class_takes_its_prompts_alone_and_labels_the_films(home: Path, priors: str) -> None:
    ask = ("synthesize", "--run", "clinic-priors", "--n", 3)
    succeed(home, *ask, "--class", "ill", "--out", home / "ill")
    assert [(row["class"], row["prompt"]) for row in table_of(home / "ill")] == [
        ("ill", "Opacity in both lungs."), ("ill", "Consolidation."), ("ill", "Opacity in both lungs."),
    ]  # fmt: skip
    succeed(home, *ask, "--class", "well", "--prompt", "Normal.", "--out", home / "well")
    assert {(row["class"], row["prompt"]) for row in table_of(home / "well")} == {("well", "Normal.")}
    line = refused(home, *ask, "--class", "sick", "--out", home / "sick")
    assert "no class of given; there are: ill, well" in line
    line = refused(home, *ask, "--class", "sick", "--prompt", "Sick.", "--out", home / "sick")
    assert "no class of clinic; there are: ill, well" in line


def test_synthetic_films_become_training_rows_one_by_one(home: Path, synthetic: Path) -> None:
    rows = {Path(row["image"]).stem: row for row in table_of(synthetic)}
    folder = home / "data/shards/films"
    shards = Shards.open(folder, "train")
    assert sorted(shards.key(i) for i in range(len(shards))) == sorted(rows)
    for i in range(len(shards)):
        row, meta = rows[shards.key(i)], shards.meta(i)
        assert (picture(shards.image(i)) == np.asarray(Image.open(synthetic / row["image"]))).all()
        assert meta["labels"] == {name: float(name == row["class"]) for name in ("ill", "well")}
        assert row["prompt"] in PROMPTS[row["class"]]
        assert meta["sections"] == {"prompt": row["prompt"]}
        assert meta["origin"] == row["origin"]
    manifest = json.loads((folder / "manifest.json").read_text())
    (origin,) = {row["origin"] for row in rows.values()}
    assert origin.startswith("synthetic:clinic-priors@")
    assert list(manifest["splits"]) == ["train"]
    assert manifest["splits"]["train"]["synthetic"] == {origin: 9}


def test_synthetic_films_are_kept_out_of_every_other_split(
    home: Path, synthetic: Path, tmp_path: Path
) -> None:
    succeed(
        home,
        "prepare",
        "table",
        "--raw",
        synthetic / "samples.csv",
        "--out",
        tmp_path / "a",
        "-o",
        "all=train",
    )
    ask = ("prepare", "table", "--raw", synthetic / "samples.csv", "--out")
    for split in ("valid", "test"):
        line = refused(home, *ask, tmp_path / split, "-o", f"all={split}")
        assert f"in '{split}'; models are measured on real images alone" in line
        assert not (tmp_path / split / "manifest.json").exists()
    rows = table_of(synthetic)
    for number, row in enumerate(rows):
        row["split"] = "test" if number == 7 else "train"
    with (synthetic / "split.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    line = refused(home, "prepare", "table", "--raw", synthetic / "split.csv", "--out", tmp_path / "b")
    (synthetic / "split.csv").unlink()
    assert "000007.png: a synthetic image" in line
    line = refused(home, *finetune(home, "data.dataset=films", "data.valid=train", "data.test="))
    assert "'train' holds 9 synthetic images (synthetic:clinic-priors@" in line
    assert line.endswith("name another split as data.valid")
    line = refused(home, "fit-prior", PRIORS, "--run", "model", "--data", "films", "-o", "data.valid=train")
    assert line.endswith("name another split as data.valid")
    other = ("-o", "data.dataset=films", "-o", "data.valid=", "-o", "data.test=train")
    assert refused(home, "pretrain", PRETRAIN, "--name", "no", *other).endswith(
        "name another split as data.test"
    )


def test_samples_are_judged_by_the_films_that_the_priors_saw(home: Path, synthetic: Path) -> None:
    """And not by those that the model under them was trained on: a copy would otherwise never be found."""
    ask = ("score", "clinic-priors", "--fake", synthetic, "--real", "train", "--copies")
    said = succeed(home, *ask, "--extractor", "encoder")
    results = home / "runs/clinic-priors/results"
    judged = json.loads(next(results.glob("synthesis-*.json")).read_text())
    copies = json.loads(next(results.glob("copies-*.json")).read_text())
    assert judged["real"]["name"] == "clinic/train"
    assert judged["real"]["n"] == SPLITS["train"]
    assert (judged["dataset"], copies["dataset"]) == ("clinic", "clinic")
    assert "encoder FD" in said
    pages = [path.read_text() for path in (home / "runs/clinic-priors/page").rglob("*.html")]
    assert any("film_" in page for page in pages)
    assert not any("phantom-0-train" in page for page in pages)


def test_samples_are_judged_by_the_splits_that_the_priors_saw(home: Path) -> None:
    """Copies of a film of `valid` are copies where priors were fitted on `valid`."""
    splits = ("-o", "data.train=valid", "-o", "data.valid=test")
    succeed(home, "fit-prior", PRIORS, "--run", "model", "--name", "other-splits", *splits)
    said = succeed(home, "score", "other-splits", "--fake", "valid", "--copies")
    assert "COPIES SUSPECTED" in said
    results = home / "runs/other-splits/results"
    protocol = json.loads(next(results.glob("copies-*.json")).read_text())["protocol"]
    assert "of phantom/valid nearest" in protocol
    assert "held-out phantom/test" in protocol
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_DATA", str(home / "data"))
        patch.setenv("MU_RUNS", str(home / "runs"))
        fitted = restore_priors(Run(home / "runs/other-splits"), torch.device("cpu"))
    swapped = replace(fitted.recipe.data, train="test", valid="valid")
    fitted = replace(fitted, recipe=replace(fitted.recipe, data=swapped))
    data = on_their_data(fitted).recipe.data
    assert (data.train, data.valid, data.test) == ("test", "valid", ""), (
        "what was seen is held out from nothing"
    )


QUICK = (
    "data.dataset=clinic", "data.workers=0", "train.steps=12", "train.global_batch=8", "train.valid_every=4",
    "train.checkpoint_every=4", "train.log_every=1", "train.threads=1", "train.tensorboard=false",
    "model.head=linear", "model.loss=cross_entropy", "model.metric=auroc",
)  # fmt: skip


def finetune(home: Path, *settings: str, run: str = "probe") -> tuple[object, ...]:
    words = [word for setting in (*QUICK, *settings) for word in ("-o", setting)]
    return "finetune", "finetune-demo", "--run", "model", "--name", run, *words


def outcome(home: Path, run: str) -> dict[str, Any]:
    return dict(json.loads((home / f"runs/{run}/results/finetune-clinic-test.json").read_text()))


@pytest.mark.parametrize("freeze", ["false", "true"])
def test_a_classifier_trains_on_both_and_is_measured_on_real_films(
    home: Path, synthetic: Path, freeze: str
) -> None:
    run, settings = f"both-{freeze}", ("data.fraction=0.5", f"model.freeze={freeze}")
    said = succeed(home, *finetune(home, "data.extra=[films]", *settings, run=run))
    assert "trained on 12 and 9 of films" in said
    succeed(home, *finetune(home, *settings, run=f"real-{freeze}"))
    both, real = outcome(home, run), outcome(home, f"real-{freeze}")
    samples = json.loads((home / f"runs/{run}/samples.json").read_text())
    alone = json.loads((home / f"runs/real-{freeze}/samples.json").read_text())
    # the same real films, and nothing of the extra ones elsewhere
    assert {role: samples[role] for role in alone} == alone
    assert set(samples) - set(alone) == {"extra:films"}
    assert both["extra"] == ["films"]
    assert both["extra_samples"]["films"]["n"] == 9
    assert both["extra_samples"]["films"]["positives"] == {"ill": 5, "well": 4}
    assert list(both["extra_samples"]["films"]["synthetic"].values()) == [9]
    assert both["train"]["n"] == real["train"]["n"] == 12
    assert both["n"] == real["n"] == SPLITS["test"]
    assert "extra" not in real
    assert both["checkpoint"]["hash"] != real["checkpoint"]["hash"]


def test_films_of_one_class_are_added_where_each_film_has_one(home: Path, priors: str) -> None:
    out = home / "all-ill"
    succeed(home, "synthesize", "--run", "clinic-priors", "--class", "ill", "--n", 5, "--out", out)
    succeed(home, "prepare", "table", "--raw", out / "samples.csv", "--name", "all-ill", "--size", 32)
    ask = ("data.extra=[all-ill]", "model.freeze=true")
    succeed(home, *finetune(home, *ask, run="more-ill"))
    assert outcome(home, "more-ill")["extra_samples"]["all-ill"]["positives"] == {"ill": 5, "well": 0}
    # a film that is ill may be anything else where it may have several labels
    line = refused(home, *finetune(home, *ask, "model.loss=binary_cross_entropy", run="several"))
    assert "all-ill: split 'train' has no label well" in line


def test_an_epoch_is_all_films_together(home: Path, synthetic: Path) -> None:
    settings = (
        "data.extra=[films]",
        "data.fraction=0.5",
        "train.steps=0",
        "train.epochs=2",
        "model.freeze=true",
    )
    said = succeed(home, *finetune(home, *settings, run="epochs"))
    assert "; 6 steps of 8 on" in said  # twice 12 + 9 films, each time rounded up


def tensors(folder: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "checkpoints/step-00000012/model.safetensors")


def test_stopped_and_resumed_on_both_equals_not_stopped(home: Path, synthetic: Path) -> None:
    ask = ("data.extra=[films]", "train.keep=5")
    succeed(home, *finetune(home, *ask, run="whole"))
    shutil.copytree(home / "runs/whole", home / "runs/half")
    for step in (8, 12):
        shutil.rmtree(home / f"runs/half/checkpoints/step-{step:08d}")
    shutil.rmtree(home / "runs/half/best")
    succeed(home, *finetune(home, *ask, run="half"))
    whole, half = tensors(home / "runs/whole"), tensors(home / "runs/half")
    assert whole.keys() == half.keys()
    assert all(whole[name].equal(half[name]) for name in whole)


def test_two_ranks_learn_from_both_what_one_does(home: Path, synthetic: Path) -> None:
    from tests.run.test_fit_prior import start

    ask = ("data.extra=[films]", "model.freeze=true")
    succeed(home, *finetune(home, *ask, "train.micro_batch=4", run="one"))
    line = finetune(home, *ask, "train.micro_batch=4", run="two")
    process = start(home, *line, "--num-processes", 2)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    one, two = tensors(home / "runs/one"), tensors(home / "runs/two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


def test_extra_films_that_do_not_belong_are_refused(home: Path, synthetic: Path, tmp_path: Path) -> None:
    line = refused(home, *finetune(home, "data.extra=[nowhere]"))
    assert "data.extra: " in line
    assert "nowhere: no such folder of shards" in line
    line = refused(home, *finetune(home, "data.extra=[clinic]"))
    assert "data.extra: clinic is data.dataset already" in line
    line = refused(home, *finetune(home, "data.extra=[films, films]"))
    assert "data.extra: names a data set twice" in line
    line = refused(home, *finetune(home, "data.extra=[phantom]"))
    assert "data.extra has the class" in line
    assert "but clinic has ill, well" in line
    # the clinic's own films once more, all as training rows: the held-out ones are among them
    again = ("--name", "again", "--size", 32, "-o", "all=train")
    succeed(home, "prepare", "table", "--raw", home / "raw/films.csv", *again)
    line = refused(home, *finetune(home, "data.extra=[again]", run="leak"))
    assert "film_24 is the image film_24 of" in line
    assert "split 'valid', which is held out; leave it out of data.extra" in line
    said = succeed(home, "check", "finetune-demo", *finetune(home, "data.extra=[films]")[6:])
    assert "ok       shards of films" in said
    assert "ok       image size of films: 32" in said
    assert "9 extra:films" in said
