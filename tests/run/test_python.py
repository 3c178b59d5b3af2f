"""`import medunifier`: the page as written, and the numbers of the verbs, on one tiny run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pydicom
import pytest
import torch
import yaml
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

import medunifier
from medunifier_cli.data.batch import PackedText
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import CheckpointError, DataError, MuError
from medunifier_cli.plugin_index import load_dataset
from tests.house.file_map import ROOT
from tests.run.small_priors import PRETRAIN, PRIORS, call, make_codes_differ

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
SENTENCE = "Large left pleural effusion."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a run `demo`, its priors `prior-demo`, and the test split as files."""
    root = tmp_path_factory.mktemp("python")
    sizes = ("-o", "train=48", "-o", "valid=8", "-o", "test=6")
    for words in (
        ("prepare", "phantom", "--size", 32, *sizes),
        ("pretrain", PRETRAIN, "--name", "demo", "-o", "train.steps=2", "-o", "data.test="),
    ):
        code, printed = call(root, *words)
        assert code == 0, printed
    make_codes_differ(root, "demo")
    fit = ("fit-prior", PRIORS, "--name", "prior-demo", "--run", "demo", "-o", "train.steps=2")
    code, printed = call(root, *fit)
    assert code == 0, printed
    shards = Shards.open(root / "data/shards/phantom", "test")
    (root / "films").mkdir()
    for row in range(len(shards)):
        (root / "films" / f"{shards.key(row)}.png").write_bytes(shards.image(row))
    return root


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_DATA", str(root / "data"))
    monkeypatch.setenv("MU_RUNS", str(root / "runs"))


@pytest.fixture(scope="module")
def films(root: Path) -> list[Path]:
    return sorted((root / "films").iterdir())


@pytest.fixture(scope="module")
def model(root: Path) -> medunifier.Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_RUNS", str(root / "runs"))
        return medunifier.load("demo", device="cpu")


def write_dicom(path: Path, levels: np.ndarray) -> None:  # type: ignore[type-arg]
    """An uncompressed film of 8 bits."""
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = generate_uid(entropy_srcs=["film"])
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    film.Rows, film.Columns = levels.shape
    film.BitsAllocated = film.BitsStored = 8
    film.HighBit, film.SamplesPerPixel, film.PixelRepresentation = 7, 1, 0
    film.PhotometricInterpretation, film.PixelData = "MONOCHROME2", levels.tobytes()
    film.save_as(path, enforce_file_format=True)


def test_the_page_runs_as_it_is_written(
    root: Path,
    films: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(films[0], "film.png")
    write_dicom(Path("film.dcm"), np.asarray(Image.open(films[1])))
    names: dict[str, object] = {}
    said = []
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
        said.append(capsys.readouterr().out)
    assert len(BLOCKS) == 10
    model = names["model"]
    assert isinstance(model, medunifier.Model)
    printed = call(root, "report", "film.png", "--run", "demo")[1]
    assert printed.startswith(said[0])
    assert printed.removeprefix(said[0]).startswith("Likeness"), "the rest is for stderr"
    assert said[1].startswith("likeness to the training films unknown: ")
    assert "film.png: " in said[4]
    assert said[8] == f"(5, {model.trained.recipe.model.qformer.queries}, 16)\n"
    assert said[9].startswith("no-such-film.png: no image that can be read (missing)")
    for name in ("reconstructed.png", "new-0.png", "new-1.png"):
        assert Image.open(name).size == (32, 32)


def test_classes_are_those_of_the_verb(
    root: Path, model: medunifier.Model, films: list[Path], tmp_path: Path
) -> None:
    classes = {name: [f"{name} on the left.", f"Large {name}."] for name in load_dataset("phantom").classes}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(classes))
    words = ("--run", "demo", "--prompts", tmp_path / "mine.yaml", "--count", 0, "--format", "json")
    for ensemble in ("max", "mean"):
        code, printed = call(root, "zeroshot", *films, *words, "--ensemble", ensemble)
        assert code == 0, printed
        answers = model.classify(films, classes, ensemble=ensemble)
        for row, answer in zip(json.loads(printed), answers, strict=True):
            assert (row["file"], row["class"]) == (answer.name, answer.label)
            for name in classes:
                assert row["probabilities"][name] == round(answer.probabilities[name], 6)
                assert row["similarities"][name] == round(answer.similarities[name], 6)
    one = model.classify(films[0], {"left": "Left effusion.", "none": ("No acute disease.",)})[0]
    assert str(one).startswith(f"{films[0]}: {one.label} ")
    assert repr(one) == f"Classification({one})"
    assert sum(one.probabilities.values()) == pytest.approx(1)


def test_reports_are_those_of_the_verb(root: Path, model: medunifier.Model, films: list[Path]) -> None:
    for words, decoding in (
        (("--max-tokens", 12), medunifier.Decoding(max_tokens=12)),
        (
            ("--sample", "nucleus", "--seed", 3, "--max-tokens", 12),
            medunifier.Decoding(how="nucleus", seed=3, max_tokens=12),
        ),
    ):
        code, printed = call(root, "report", *films, "--run", "demo", "--format", "json", *words)
        assert code == 0, printed
        expected = [json.loads(line)["report"] for line in printed.splitlines()]
        assert [str(report) for report in model.report(films, decoding)] == expected
    assert len(set(expected)) > 1


def test_generated_images_are_those_of_the_verb(root: Path, model: medunifier.Model, tmp_path: Path) -> None:
    prompts = [SENTENCE, "No acute disease."]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    words = ("--prompts", tmp_path / "prompts.txt", "--n", 3, "--seed", 5, "--guidance", 2, "--top-k", 9)
    words = (*words, "--best-of", 2, "--out", tmp_path / "out", "--run", "demo")
    code, printed = call(root, "synthesize", *words)
    assert code == 0, printed
    expected = [np.asarray(Image.open(tmp_path / "out" / f"00000{number}.png")) for number in range(3)]
    for one in (model, medunifier.load("prior-demo", "cpu")):
        images = one.generate(prompts, 3, seed=5, guidance=2, top_k=9, best_of=2)
        assert all(np.array_equal(image, png) for image, png in zip(images, expected, strict=True))
    assert not np.array_equal(model.generate(SENTENCE, seed=6, guidance=2, top_k=9)[0], expected[0])
    assert len(model.generate()) == 1


def test_codes_are_those_the_priors_were_fitted_on(
    root: Path, model: medunifier.Model, tmp_path: Path
) -> None:
    shards = Shards.open(root / "data/shards/phantom", "valid")
    sections = [shards.meta(row)["sections"] for row in range(len(shards))]
    texts = [f"{part['findings']} {part['impression']}" for part in sections]
    pictures = []
    for row in range(len(shards)):
        (tmp_path / "one.png").write_bytes(shards.image(row))
        pictures.append(np.asarray(Image.open(tmp_path / "one.png")))
    codes = model.encode(pictures, texts)
    (path,) = (root / "runs/prior-demo").rglob("codes.h5")
    with h5py.File(path) as file:
        assert np.array_equal(codes.top, file["valid/top"][:])
        assert np.array_equal(codes.bottom, file["valid/bottom"][:])
    code, printed = call(
        root, "synthesize", "--reconstruct", "valid", "--run", "demo", "--out", tmp_path / "out"
    )
    assert code == 0, printed
    for number, image in enumerate(model.decode(codes)):
        saved = np.asarray(Image.open(tmp_path / "out" / f"{number:06d}.png")).astype(int)
        assert np.abs(saved - np.asarray(image)).max() <= 1  # the verb decodes several images at once
    assert not np.array_equal(model.encode(pictures).bottom, codes.bottom)  # without their texts
    assert np.array_equal(model.encode(pictures).top, codes.top)
    assert repr(codes[2:4]) == "Codes(2 images, top 2x2, bottom 4x4)"


def test_embeddings_are_those_that_retrieval_measures(
    root: Path, model: medunifier.Model, films: list[Path]
) -> None:
    shards = Shards.open(root / "data/shards/phantom", "test")
    code, printed = call(root, "retrieve", "--run", "demo", "--split", "test")
    assert code == 0, printed
    with h5py.File(root / "runs/demo/cache/embeddings-phantom-test.h5") as file:
        image_nQE = file["image"][:]
    paths = [root / "films" / f"{shards.key(row)}.png" for row in range(len(shards))]
    found = model.embed_image(paths)
    assert np.allclose(found, image_nQE, atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=2), 1, atol=1e-5)
    assert np.allclose(model.embed_image(paths[3]), found[3:4], atol=1e-6)
    assert model.embed_text([SENTENCE, SENTENCE]).shape == (2, found.shape[2])


def test_match_is_the_softmax_of_the_itm_head(model: medunifier.Model, films: list[Path]) -> None:
    texts = [SENTENCE, "No acute disease.", "Normal heart."]
    trained = model.trained
    expected = np.empty((2, 3))
    for i, film in enumerate(films[:2]):
        level_HW = torch.from_numpy(np.asarray(Image.open(film)).copy())
        for j, text in enumerate(texts):
            ids = trained.tokenizer.encode(text, trained.recipe.text.max_tokens)
            packed = PackedText.of([ids])
            with torch.no_grad():
                memory = trained.model.encode(level_HW[None, None])
                expected[i, j] = trained.model.match(memory, torch.tensor([0]), packed).softmax(1)[0, 1]
    assert np.allclose(model.match(films[0], texts), expected[0], atol=1e-6)
    assert np.allclose(model.match(films[:2], texts[1]), expected[:, 1], atol=1e-6)
    assert np.allclose(model.match(films[:2], texts[1:]), [expected[0, 1], expected[1, 2]], atol=1e-6)
    with pytest.raises(MuError, match="2 images and 3 texts do not pair up"):
        model.match(films[:2], texts)


def test_what_is_wrong_is_one_line_without_any_text(model: medunifier.Model, films: list[Path]) -> None:
    secret = "Mister Miller has a large effusion"
    codes = model.encode(films[:1])
    for wrong, message in (
        (lambda: model.embed_text([SENTENCE, secret * 40]), "text 2 of 2: a text of more than 95 tokens"),
        (lambda: model.match(films[0], [secret, ""]), "text 2 of 2: an empty text"),
        (lambda: model.classify(films, {secret: []}), "two or more classes"),
        (lambda: model.classify(films, {"a": [SENTENCE], "b": []}), r"classes\['b'\]: no text"),
        (lambda: model.embed_text([secret, 3]), r"texts\[1\]: int is no text"),
        (lambda: model.encode(films[:2], [secret] * 3), "2 images and 3 texts"),
        (lambda: model.generate([SENTENCE, secret * 40]), r"prompts\[1\]: a prompt of more than 95 tokens"),
        (lambda: model.generate(n=0), "1 or more images"),
        (lambda: model.generate(SENTENCE, best_of=0), "best_of is 1 or more images, not 0"),
        (lambda: model.generate(guidance=2), "guidance 2 needs a prompt"),
        (lambda: model.report(films, medunifier.Decoding(how="magic")), "not by 'magic'"),
        (lambda: model.decode(medunifier.Codes(codes.bottom, codes.top)), r"\[n, 2, 2\]"),
        (lambda: model.decode(medunifier.Codes(codes.top + 16, codes.bottom)), "from 0 to 15"),
        (lambda: medunifier.Codes(codes.top, codes.bottom[0]), "codes are top"),
        (lambda: medunifier.load("dmo"), "did you mean `demo`"),
        (lambda: medunifier.load("demo", device="abacus"), "no such device"),
    ):
        with pytest.raises(MuError, match=message) as caught:
            wrong()
        assert "Miller" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_runs_that_were_moved_together_find_each_other(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "runs", tmp_path / "elsewhere")
    shutil.copytree(root / "runs/prior-demo", tmp_path / "others" / "demo")  # another run of this name
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "others"))
    for name in ("prior-demo", "demo"):
        assert medunifier.load(tmp_path / "elsewhere" / name).generate(SENTENCE)[0].size == (32, 32)
    shutil.rmtree(tmp_path / "elsewhere" / "prior-demo")
    with pytest.raises(CheckpointError, match=r"no priors were fitted.*mu fit-prior RECIPE --run demo"):
        medunifier.load(tmp_path / "elsewhere" / "demo").generate(SENTENCE)


def test_the_newest_run_is_taken_and_another_stage_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "demo, step 3, ITC ITM ITG TIG, 32 pixels" in repr(medunifier.load(device="cpu"))
    assert "load uses the newest run that fits" in capsys.readouterr().err
    other = root / "other"
    other.mkdir()
    (other / "recipe.yaml").write_text("stage: finetune\n")
    with pytest.raises(CheckpointError, match=r"is a fine-tuned run; name a pre-trained one$"):
        medunifier.load(other)
    assert issubclass(DataError, medunifier.MuError)
