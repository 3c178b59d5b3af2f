"""`mu export`: what the folder holds is the run, for transformers, for `mu` and for ONNX."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.encoder.tower import tensors_hash
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.cli import mu
from medunifier_cli.data.contract import FileImage, PackedText
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import CheckpointError, DataError, MuError
from medunifier_cli.evaluate.retrieval.embed import embed_images, embed_texts
from medunifier_cli.evaluate.user_images import read_images
from medunifier_cli.hub import MedUnifierModel, exporting, load_exported, onnx_towers
from medunifier_cli.hub.exporting import Choices, export
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.pretraining import build_model
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from tests.hand_made import WORDS
from tests.house.file_map import ROOT
from tests.tiny import draw_batch, scatter, tiny_recipe

TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
TEXTS = ["No pleural effusion.", "Heart enlarged.", "clear lungs are left"]
ODD = [
    "",
    "[SEP] heart [DEC] [MASK]",
    "Éffusion 肺 left",
    "x" * 300 + " heart",
    "a\u2028b\x00 c",
    "left " * 40,
]
CPU = torch.device("cpu")


def write_run(folder: Path, recipe: PretrainRecipe) -> Run:
    """A run as `mu pretrain` leaves it, whose every tensor is random, statistics of norms too."""
    run = Run(folder)
    run.begin(recipe, {}, ["mu", "pretrain"])
    TOKENIZER.save(run.tokenizer)
    torch.manual_seed(3)
    model = build_model(recipe, TOKENIZER.size)
    frozen = {f"vit.vit.{name}" for name, _ in model.vit.frozen_tensors()}
    hashed = tensors_hash(dict(model.vit.frozen_tensors()))
    facts = {"stage": {"tokenizer": TOKENIZER.fingerprint, "frozen_hash": hashed}}
    if not frozen:
        scatter(model)
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")) and "running" in name:
            buffer.uniform_(0.5, 1.5)
    tensors = {name: t for name, t in model.state_dict().items() if name not in frozen}
    store.save(run.checkpoints, store.Checkpoint(7, {"model": tensors}, facts), keep=1)
    return run


@dataclass(frozen=True)
class Home:
    """A run, what it was exported to, and a film."""

    run: Run
    folder: Path
    film: Path
    trained: PretrainedRun


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    root = tmp_path_factory.mktemp("secret-path")
    recipe = tiny_recipe(
        "data.dataset=phantom", f"data.shards={root}/data", f"text.tokenizer={root}/words",
        "objectives.embed_norm=batch", "model.generator.feature_norm=batch",
    )  # fmt: skip
    run = write_run(root / "runs" / "small", recipe)
    identity = store.identity(run.checkpoints, 7)
    run.results.mkdir()
    for task, hashed, value in (("zeroshot", identity, 0.875), ("retrieval", "another", 0.125)):
        metric = {
            "name": f"{task} accuracy",
            "value": value,
            "floor": 0.2,
            "low": 0.8,
            "high": 0.9,
            "unit": "",
        }
        result = {
            "task": task, "dataset": "phantom", "split": "test", "n": 40, "seed": 0, "protocol": "as ever",
            "checkpoint": {"step": 7, "hash": hashed}, "metrics": [metric],
        }  # fmt: skip
        (run.results / f"{task}-phantom-test.json").write_text(json.dumps(result))
    rng = np.random.default_rng(0)
    film = root / "film.png"
    levels = np.add.outer(np.arange(60), np.arange(50)) + rng.integers(0, 99, (60, 50))
    Image.fromarray(levels.astype(np.uint8)).save(film)
    export(run, root / "out", Choices(licence="cc-by-nc-4.0"))
    return Home(run, root / "out", film, restore(run, CPU))


def call(*words: object) -> Result:
    return CliRunner().invoke(mu, [str(word) for word in words])


def features(trained: PretrainedRun, film: Path) -> tuple[Any, Any]:
    image = read_images([film], 32).image_B1HW
    return embed_images(trained, image), embed_texts(trained, TEXTS)


def test_a_folder_gives_the_embeddings_of_its_run(home: Home) -> None:
    again = load_exported(home.folder, CPU)
    for ours, theirs in zip(features(home.trained, home.film), features(again, home.film), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (again.identity, again.step) == (home.trained.identity, 7)
    assert again.run.folder == home.folder
    assert not again.model.training


def test_transformers_gives_the_embeddings_of_the_run(home: Home) -> None:
    image, text = features(home.trained, home.film)
    model = AutoModel.from_pretrained(home.folder).eval()
    processor = AutoProcessor.from_pretrained(home.folder)
    assert isinstance(model, MedUnifierModel)
    with torch.no_grad():
        inputs = processor(images=[home.film], text=TEXTS)
        found = model(**inputs)
    np.testing.assert_allclose(found.image_embeds, image, atol=1e-6)
    np.testing.assert_allclose(found.text_embeds, text, atol=1e-6)
    cosine = (image @ text.T).max(axis=1)
    temperature = home.trained.model.temperature.item()
    np.testing.assert_allclose(found.logits_per_image, cosine / temperature, rtol=1e-5)
    np.testing.assert_allclose(found.logits_per_text, cosine.T / temperature, rtol=1e-5)
    with torch.no_grad():
        memory = home.trained.model.encode_image(inputs["pixel_values"])
        packed = PackedText.of([TOKENIZER.encode(TEXTS[0], 12)])
        ours = home.trained.model.match(memory, torch.arange(1), packed)
        one = processor(images=[home.film], text=TEXTS[0])
        torch.testing.assert_close(model.match(**one), ours)


def test_constants_that_no_file_holds_are_there(home: Home) -> None:
    """Normalisation of pixels, and the adapters' encoding of positions."""
    model = AutoModel.from_pretrained(home.folder).eval()
    batch = draw_batch(3)
    with torch.no_grad():
        ours, theirs = home.trained.model.reconstruct(batch), model.model.reconstruct(batch)
    torch.testing.assert_close(ours.image_BCHW, theirs.image_BCHW, atol=0, rtol=0)
    expected = dict(home.trained.model.named_buffers())
    assert all(torch.equal(buffer, expected[name]) for name, buffer in model.model.named_buffers())


def test_a_pipeline_of_transformers_classifies(home: Home) -> None:
    found = pipeline("zero-shot-image-classification", model=str(home.folder))(
        Image.open(home.film), candidate_labels=TEXTS, hypothesis_template="{}"
    )
    image, text = features(home.trained, home.film)
    logits = torch.from_numpy((image @ text.T).max(axis=1)[0]) / home.trained.model.temperature.detach()
    expected = dict(zip(TEXTS, logits.softmax(0).tolist(), strict=True))
    assert {row["label"]: row["score"] for row in found} == pytest.approx(expected, abs=1e-4)


def test_images_of_every_kind_become_the_pixels_of_training(home: Home, tmp_path: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(home.folder)
    expected = pixels(torch.from_numpy(image_from(FileImage(home.film), 32).pixels)[None, None])
    picture = Image.open(home.film)
    levels = np.array(picture)
    rgb = np.stack([levels] * 3, 2)
    for image in (
        home.film,
        str(home.film),
        picture,
        levels,
        torch.from_numpy(levels),
        rgb,
        rgb.transpose(2, 0, 1),
        levels / 255,
    ):
        found = processor(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
    assert processor([picture, levels], return_tensors="np")["pixel_values"].shape == (2, 3, 32, 32)
    deep = levels.astype(np.uint16) * 99
    Image.fromarray(deep).save(tmp_path / "deep.png")
    of_file = image_from(FileImage(tmp_path / "deep.png"), 32)
    assert of_file.bit_depth == 16
    found = processor(deep, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, pixels(torch.from_numpy(of_file.pixels)[None, None]), atol=0, rtol=0)
    for wrong in (levels[0], "no-such-file.png", [], np.zeros((9, 9), np.uint8)):
        with pytest.raises(DataError):
            processor(wrong)


def test_texts_become_the_token_ids_of_training(home: Home) -> None:
    tokenizer = AutoTokenizer.from_pretrained(home.folder)
    for text in (*TEXTS, *ODD):
        assert tokenizer(text, truncation=True)["input_ids"] == TOKENIZER.encode(text, 12), text
    assert tokenizer.convert_tokens_to_ids("[DEC]") == TOKENIZER.dec_id
    assert len(tokenizer) == TOKENIZER.size
    assert TextTokenizer.load(str(home.folder)).fingerprint == TOKENIZER.fingerprint


def test_a_folder_is_complete_and_names_no_path_of_the_machine(home: Home) -> None:
    names = {path.name for path in home.folder.iterdir()}
    assert names >= {
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml",
        "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    }  # fmt: skip
    for path in home.folder.iterdir():
        assert b"secret-path" not in path.read_bytes(), path.name
        assert path.stat().st_mode == (home.folder / "README.md").stat().st_mode, path.name
    config = AutoConfig.from_pretrained(home.folder)
    assert config.architectures == ["MedUnifierModel"]
    assert config.pretraining.model == home.trained.recipe.model
    assert "auto_map" not in json.loads((home.folder / "config.json").read_text())


def test_the_card_is_filled_from_the_run(home: Home) -> None:
    card = ModelCard.load(home.folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "transformers"
    (listed,) = card.data.eval_results
    assert (listed.metric_value, listed.dataset_type) == (0.875, "phantom")
    for words in (
        "Not for diagnosis",
        "synthetic radiographs",
        "0.800-0.900",
        "0.200",
        "n = 40",
        "@inproceedings",
        "Steps: 7 of 8 pairs",
        "itc 1",
        home.trained.identity,
        "Intended use",
        "Limits",
    ):
        assert words in card.text, words
    # measured on another checkpoint than the exported one
    assert "0.125" not in card.content


def test_a_verb_takes_the_folder_for_a_run(home: Home) -> None:
    done = call("report", home.film, "--run", home.folder)
    assert done.exit_code == 0, done.output
    assert call("report", home.film, "--run", home.run.folder).stdout == done.stdout


def test_what_transformers_saved_anew_is_read(home: Home, tmp_path: Path, capsys: Any) -> None:
    model = AutoModel.from_pretrained(home.folder)
    model.save_pretrained(tmp_path / "same", max_shard_size="20KB")
    assert len(list((tmp_path / "same").glob("*.safetensors"))) > 1
    AutoProcessor.from_pretrained(home.folder).save_pretrained(tmp_path / "same")
    again = load_exported(tmp_path / "same", CPU)
    assert again.identity == home.trained.identity
    with torch.no_grad():
        model.model.text_head.project.bias.add_(1)
    model.save_pretrained(tmp_path / "other")
    AutoProcessor.from_pretrained(home.folder).save_pretrained(tmp_path / "other")
    other = load_exported(tmp_path / "other", CPU)
    assert other.identity != home.trained.identity
    assert "trained further" in capsys.readouterr().err


def copy_of(home: Home, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home.folder, tmp_path / "copy", copy_function=shutil.copy))


@pytest.mark.parametrize("change", ["lost", "added", "reshaped"])
def test_weights_that_do_not_fit_are_refused(home: Home, tmp_path: Path, change: str) -> None:
    folder = copy_of(home, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.text_head.project.bias"
    if change == "lost":
        del tensors[name]
    elif change == "added":
        tensors["model.of_nobody"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="copy"):
        load_exported(folder, CPU)
    with pytest.raises(CheckpointError, match="copy"):
        AutoModel.from_pretrained(folder)


def test_damage_is_one_line(home: Home, tmp_path: Path) -> None:
    folder = copy_of(home, tmp_path)
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("heart", "herat"))
    with pytest.raises(CheckpointError, match="not the tokenizer"):
        load_exported(folder, CPU)
    shutil.copy(home.folder / "vocab.txt", folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(MuError, match="damaged"):
        load_exported(folder, CPU)
    (folder / "config.json").write_text('{"model_type": "medunifier"}')
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_exported(folder, CPU)
    for nothing in (tmp_path, tmp_path / "none", home.run.folder):
        with pytest.raises(CheckpointError, match="no exported model"):
            load_exported(nothing)


def test_nothing_but_an_exported_folder_is_replaced(home: Home, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("all of it")
    measured = copy_of(home, tmp_path / "used")
    (measured / "results").mkdir()
    for folder in (tmp_path / "mine", home.run.folder, measured):
        done = call("export", home.run.folder, folder)
        assert (done.exit_code, done.stderr.count("\n")) == (1, 1), done.output
        assert "something else" in done.stderr
    folder = copy_of(home, tmp_path)
    (folder / ".git").mkdir()
    done = call("export", home.run.folder, folder)
    assert "/.git: no export writes this; name a new folder" in done.stderr
    (folder / ".git").rmdir()
    (folder / "vocab.txt").unlink()
    assert call("export", home.run.folder, folder).exit_code == 0
    assert (folder / "vocab.txt").is_file()


def test_a_frozen_tower_is_bundled_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe("model.vit.weights=lab/tower", "model.vit.frozen=true", "objectives.tig=0")
    torch.manual_seed(1)
    donor = build_model(tiny_recipe(), 9).vit.vit
    (tmp_path / "lab/tower").mkdir(parents=True)
    norm = {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    save_file({**donor.state_dict(), **norm}, tmp_path / "lab/tower/model.safetensors")
    run = write_run(tmp_path / "runs" / "frozen", recipe)
    film = tmp_path / "film.png"
    Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(film)
    expected, _ = features(restore(run, CPU), film)
    with pytest.raises(MuError, match="--tower bundle"):
        export(run, tmp_path / "named", Choices(bundle=False))
    assert not (tmp_path / "named").exists()
    monkeypatch.setattr(exporting, "existing_path", lambda _: None)  # as if it came from the hub's cache
    export(run, tmp_path / "named", Choices(bundle=False))
    export(run, tmp_path / "bundled")
    small, large = (tmp_path / name / "model.safetensors" for name in ("named", "bundled"))
    assert not [name for name in load_file(small) if "vit" in name]
    assert [name for name in load_file(large) if "vit.vit" in name]
    for name in ("named", "bundled"):
        np.testing.assert_array_equal(features(load_exported(tmp_path / name, CPU), film)[0], expected)
        model = AutoModel.from_pretrained(tmp_path / name).eval()
        with torch.no_grad():
            found = model(**AutoProcessor.from_pretrained(tmp_path / name)(images=film)).image_embeds
        np.testing.assert_allclose(found, expected, atol=1e-6)
    changed = {name: t + 1 for name, t in load_file(tmp_path / "lab/tower/model.safetensors").items()}
    save_file(changed, tmp_path / "lab/tower/model.safetensors")
    for load in (load_exported, AutoModel.from_pretrained):
        with pytest.raises(CheckpointError, match="not those it was trained with"):
            load(tmp_path / "named")
    shutil.rmtree(tmp_path / "lab")
    np.testing.assert_array_equal(features(load_exported(tmp_path / "bundled", CPU), film)[0], expected)


def test_the_text_tower_on_a_grid_is_the_packed_one(home: Home) -> None:
    processor = AutoProcessor.from_pretrained(home.folder)
    inputs = processor(text=[*TEXTS, "heart"])
    assert (inputs["attention_mask"] == 0).any()
    with torch.no_grad():
        found = onnx_towers.TextTower(home.trained.model)(**inputs)
    np.testing.assert_allclose(found, embed_texts(home.trained, [*TEXTS, "heart"]), atol=1e-6)


def test_onnx_computes_what_pytorch_does(home: Home, tmp_path: Path) -> None:
    for package in (*onnx_towers.WRITERS, onnx_towers.READER):
        pytest.importorskip(package, reason="needs the extra `onnx`")
    import onnxruntime

    done = call("export", home.run.folder, tmp_path / "out", "--onnx")
    assert done.exit_code == 0, done.output
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image, text = features(home.trained, home.film)
    for file, inputs, expected in (
        ("image.onnx", processor(images=[home.film] * 3, return_tensors="np"), np.concatenate([image] * 3)),
        ("text.onnx", processor(text=TEXTS, return_tensors="np"), text),
    ):
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / file))
        (found,) = session.run(None, dict(inputs))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert "image.onnx" in (tmp_path / "out/README.md").read_text()


def test_without_its_packages_onnx_is_refused_before_any_work(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_towers, "WRITERS", ("no_such_package",))
    done = call("export", home.run.folder, tmp_path / "out", "--onnx")
    assert (done.exit_code, done.stderr) == (
        1, "mu: --onnx needs no_such_package: pip install 'medunifier[onnx]'\n"
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_push_uploads_the_folder(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = call("export", home.run.folder, tmp_path / "out", "--push", "lab/model")
    assert done.exit_code == 1
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(exporting.constants, "HF_HUB_OFFLINE", False)
    assert "organisation/model" in call("export", home.run.folder, tmp_path / "out", "--push", "lab").stderr
    calls: list[Any] = []
    monkeypatch.setattr(
        HfApi, "create_repo", lambda _, name, **more: calls.append((name, more)) or f"https://hub/{name}"
    )
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **more: calls.append(more))
    done = call("export", home.run.folder, tmp_path / "out", "--push", "lab/model")
    assert (done.exit_code, done.stdout) == (0, "https://hub/lab/model\n")
    assert calls[0] == ("lab/model", {"private": True, "exist_ok": True})
    assert (calls[1]["repo_id"], calls[1]["folder_path"]) == ("lab/model", tmp_path / "out")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 of the hub\nwith a second line")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    done = call("export", home.run.folder, tmp_path / "out", "--push", "lab/model")
    assert done.exit_code == 1
    assert "is complete, but could not be pushed to lab/model (401 of the hub); log in" in done.stderr


BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_page_works_as_written(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, fresh: bool
) -> None:
    """Its commands and its Python; the slow test has a process that has imported nothing else."""
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "runs"))
    shutil.copy(home.film, tmp_path / "film.png")
    shutil.copytree(home.run.folder, tmp_path / "runs" / "demo")
    with_onnx = all(find_spec(name) for name in (*onnx_towers.WRITERS, onnx_towers.READER))
    monkeypatch.chdir(tmp_path)
    script = []
    for language, code in BLOCK.findall((ROOT / "docs/export.md").read_text(encoding="utf-8")):
        if "onnx" in code and not with_onnx:
            continue
        if language == "python":
            script.append(code)
            continue
        for line in code.splitlines():
            done = call(*shlex.split(line)[1:])
            assert done.exit_code == 0, done.output
    script.append("found.image_embeds.detach().numpy().tofile('embeds')\n")
    if fresh:
        ran = subprocess.run(
            [sys.executable, "-c", "\n".join(script)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        printed = ran.stdout
    else:
        exec("\n".join(script), {})
        printed = capsys.readouterr().out
    image, _ = features(home.trained, home.film)
    found = np.fromfile(tmp_path / "embeds", np.float32).reshape(image.shape)
    np.testing.assert_allclose(found, image, atol=1e-6)
    assert home.trained.identity in printed
