"""`mu score --fake --real`: distances by finding and on RAD-DINO, against scipy and Pillow."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from transformers import Dinov2Config, Dinov2Model

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.synthesis import frechet
from medunifier_cli.evaluate.synthesis.image_sets import query_means
from tests.run.small_run import Mu, metrics, results

EDGE, MEAN, STD = 28, 0.5307, 0.2583
PROCESSOR = {
    "image_processor_type": "BitImageProcessor", "do_convert_rgb": True, "do_resize": True,
    "size": {"shortest_edge": EDGE}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": EDGE, "width": EDGE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [MEAN] * 3, "image_std": [STD] * 3,
}  # fmt: skip
"""What the published folder's preprocessor_config.json says, with a smaller edge."""


def distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance of two Gaussians by its definition."""
    covariances = [np.cov(side.astype(np.float64), rowvar=False) for side in (real, fake)]
    shift = real.mean(axis=0, dtype=np.float64) - fake.mean(axis=0, dtype=np.float64)
    root = sqrtm(covariances[0] @ covariances[1])
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def pictures(home: Path, split: str) -> list[tuple[np.ndarray, set[str]]]:
    """Grey levels and positive labels of a split, straight from its shard."""
    out = []
    with tarfile.open(home / f"data/shards/phantom/{split}-000000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    for name in members:
        if name.endswith(".json"):
            labels = json.loads(members[name])["labels"]
            image = Image.open(io.BytesIO(members[name.replace(".json", ".png")]))
            out.append((np.asarray(image), {label for label, value in labels.items() if value == 1}))
    return out


@pytest.fixture
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "PER_FINDING", 4)


@pytest.fixture
def fake(home: Path, tmp_path: Path) -> Path:
    """A folder as `mu synthesize` leaves it: classes for some images, prompts alone for others."""
    folder = tmp_path / "fake"
    folder.mkdir()
    lines = []
    for i, (grey, _) in enumerate(pictures(home, "test")):
        Image.fromarray(255 - grey).save(folder / f"{i:06}.png")
        asked = "Cardiomegaly" if i % 2 else ""
        line = {"image": f"{i:06}.png", "sample": i, "prompt": "Severe edema."}
        lines.append(json.dumps({**line, "class": asked} if asked else line))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_distances_by_finding_are_those_of_the_images_that_have_it(
    home: Path, verb: Mu, trained: PretrainedRun, small_numbers: None
) -> None:
    done = verb("score", "small", "--real", "test", "--fake", "valid", "--extractor", "encoder")
    assert done.exit_code == 0, done.output
    written = metrics(home, "synthesis-phantom-valid-to-test")
    sides = [pictures(home, split) for split in ("test", "valid")]
    features = [query_means(trained, np.stack([grey for grey, _ in side])) for side in sides]
    names = {label for side in sides for _, labels in side for label in labels}
    compared = 0
    for name in names:
        rows = [np.array([name in labels for _, labels in side]) for side in sides]
        metric = written.get(f"encoder FD, validation, {name}")
        if min(map(sum, rows)) < 4:
            assert metric is None
            continue
        compared += 1
        assert metric is not None
        expected = distance(*(side[row] for side, row in zip(features, rows, strict=True)))
        assert metric["value"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert metric["note"] == f"{rows[0].sum()} real and {rows[1].sum()} judged images"
    assert compared >= 2
    result = json.loads((results(home) / "synthesis-phantom-valid-to-test.json").read_text())
    assert set(result["findings"]) == {name.split(", ", 2)[2] for name in written if name.count(", ") == 2
                                       and name.startswith("encoder FD")}  # fmt: skip


def test_two_splits_that_are_not_trained_on_leave_two_results(
    home: Path, verb: Mu, small_numbers: None
) -> None:
    for real, fake in (("test", "valid"), ("valid", "test")):
        done = verb("score", "small", "--real", real, "--fake", fake, "--extractor", "encoder")
        assert done.exit_code == 0, done.output
    for real, fake in (("test", "valid"), ("valid", "test")):
        result = json.loads((results(home) / f"synthesis-phantom-{fake}-to-{real}.json").read_text())
        assert (result["split"], result["fake"]["name"]) == (f"{fake}-to-{real}", f"phantom/{fake}")
        assert result["real"]["name"] == f"phantom/{real}"
        assert result["metrics"][0]["name"] == "encoder FD, validation"


def test_findings_of_generated_images_come_from_their_classes_and_prompts(
    home: Path, verb: Mu, trained: PretrainedRun, fake: Path, small_numbers: None
) -> None:
    done = verb("score", "small", "--real", "test", "--fake", fake, "--extractor", "encoder")
    assert done.exit_code == 0, done.output
    written = metrics(home, "synthesis-phantom-synthetic-fake-to-test")
    by_finding = {
        name: metric for name, metric in written.items() if name.startswith("encoder FD, synthetic, ")
    }
    assert set(by_finding) == {"encoder FD, synthetic, Cardiomegaly", "encoder FD, synthetic, Edema"}
    real = pictures(home, "test")
    judged = [255 - grey for i, (grey, _) in enumerate(real) if i % 2 == 0]
    edema = query_means(trained, np.stack([grey for grey, labels in real if "Edema" in labels]))
    expected = distance(edema, query_means(trained, np.stack(judged)))
    assert by_finding["encoder FD, synthetic, Edema"]["value"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_images_of_which_nothing_says_what_they_show_have_no_distance_by_finding(
    home: Path, verb: Mu, fake: Path, small_numbers: None
) -> None:
    (fake / "samples.jsonl").unlink()
    done = verb("score", "small", "--real", "test", "--fake", fake, "--extractor", "encoder")
    assert done.exit_code == 0, done.output
    assert not [
        name for name in metrics(home, "synthesis-phantom-images-fake-to-test") if name.count(", ") > 1
    ]


@pytest.fixture
def rad_dino(tmp_path: Path) -> Path:
    """A DINOv2 of a few thousand weights in the layout of the published folder."""
    torch.manual_seed(0)
    folder = tmp_path / "rad-dino"
    config = Dinov2Config(
        image_size=EDGE, patch_size=14, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def test_rad_dino_distance(home: Path, verb: Mu, rad_dino: Path) -> None:
    ask = ("score", "small", "--real", "test", "--fake", "valid", "--extractor", "rad-dino")
    done = verb(*ask, "--rad-dino", rad_dino)
    assert done.exit_code == 0, done.output
    metric = metrics(home, "synthesis-phantom-valid-to-test")["RAD-DINO FD, validation"]
    network = Dinov2Model.from_pretrained(rad_dino).eval()

    def features(grey: np.ndarray) -> np.ndarray:
        squashed = Image.fromarray(grey).resize((299, 299), Image.Resampling.BILINEAR)
        small = np.asarray(squashed.resize((EDGE, EDGE), Image.Resampling.BICUBIC), np.float32)
        pixels = torch.from_numpy((small / 255 - MEAN) / STD)[None, None].expand(1, 3, -1, -1)
        with torch.no_grad():
            return np.asarray(network(pixels).last_hidden_state[0, 0])

    sides = [np.stack([features(grey) for grey, _ in pictures(home, split)]) for split in ("test", "valid")]
    assert metric["value"] == pytest.approx(distance(*sides), rel=0.02)
    assert metric["low"] <= metric["value"] <= metric["high"]
    result = json.loads((results(home) / "synthesis-phantom-valid-to-test.json").read_text())
    facts = result["extractors"]["rad-dino"]
    assert facts["name"] == str(rad_dino)
    weights = (rad_dino / "model.safetensors").read_bytes()
    assert facts["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert facts["width"] == 12
    assert set(result["extractors"]) == {"rad-dino"}


def test_rad_dino_that_is_not_there_gives_one_line(
    home: Path, verb: Mu, rad_dino: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    ask = ("score", "small", "--real", "test", "--fake", "valid", "--extractor", "rad-dino")

    def line(*more: object) -> str:
        done = verb(*ask, *more)
        assert done.exit_code == 1, done.output
        assert "Traceback" not in done.output
        (one,) = done.stderr.strip().splitlines()
        return str(one)

    assert "microsoft/rad-dino is not in the Hugging Face cache" in line()
    assert "hf download microsoft/rad-dino" in line()
    assert "is neither a folder, a file nor a hub name" in line("--rad-dino", tmp_path / "nowhere")
    (rad_dino / "preprocessor_config.json").unlink()
    assert "lacks preprocessor_config.json" in line("--rad-dino", rad_dino)
    (rad_dino / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    (rad_dino / "model.safetensors").write_bytes(b"not weights")
    assert "transformers cannot load" in line("--rad-dino", rad_dino)
