"""Codes, embeddings and features: a killed encoding goes on, and its file is that of an undisturbed one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.labels.labelled import LabelledImages
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.retrieval import embed
from medunifier_cli.evaluate.synthesis import image_sets
from medunifier_cli.model.classifier import Classifier
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.run import encoding
from medunifier_cli.run.record import Run
from medunifier_cli.stages import codes, features
from tests.hand_made import WORDS, HandMade, write_split
from tests.tiny import scatter, tiny_recipe

COUNT, BATCH = 21, 4
TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)


class Setting:
    """A model of random weights, a split of hand-made shards, and where the model's run would be."""

    def __init__(self, root: Path, shards: Path) -> None:
        recipe = tiny_recipe("data.workers=0")
        torch.manual_seed(0)
        model = MedUnifier(recipe, TOKENIZER.size)
        scatter(model)
        self.trained = PretrainedRun(
            Run(root / "run"), recipe, TOKENIZER, model.eval(), torch.device("cpu"), 1, "abc"
        )
        self.opened = Shards.open(shards, "train")
        self.source = SplitSource(self.opened, TOKENIZER, recipe.data, recipe.text, HandMade())
        self.images = 0

    def count_images(self, fail_at: int) -> None:
        """Fail, as a kill would, in the batch after so many images."""
        encode = self.trained.model.encode_image

        def counted(images: Any) -> Any:
            if self.images >= fail_at:
                raise SystemExit
            self.images += len(images)
            return encode(images)

        self.trained.model.encode_image = counted  # type: ignore[method-assign, assignment]


def make_codes(setting: Setting) -> Path:
    path = setting.trained.run.folder / "codes.h5"
    codes.encode_splits(setting.trained, {"train": setting.source}, True, path, {"checkpoint": "abc"})
    return path


def make_embeddings(setting: Setting) -> Path:
    found = embed.embed_split(setting.trained, setting.source, "hand-made", "train", setting.opened.folder)
    assert found.keys == setting.opened.keys(np.arange(COUNT))
    return setting.trained.run.folder / "cache" / "embeddings-hand-made-train.h5"


def make_features(setting: Setting) -> Path:
    rows = np.arange(COUNT)
    images = LabelledImages(setting.opened, rows, np.zeros(COUNT, np.int64), 32)
    path = features.features_file(setting.trained, images, "hand-made", setting.trained.run)
    classifier = Classifier(setting.trained.model, nn.Identity(), freeze=True)
    features.compute_features(setting.trained, classifier, images, path, 0)
    assert len(features.read_features(path)) == COUNT
    return path


def make_pooled(setting: Setting) -> Path:
    benchmark = Benchmark(HandMade(), setting.source, "train", setting.opened.folder)
    image_sets.encoder_features(setting.trained, image_sets.SplitImages(benchmark, "train"))
    (path,) = (setting.trained.run.folder / "cache").glob("pooled-*.h5")
    return path


MODULES: dict[Callable[[Setting], Path], Any] = {
    make_codes: codes,
    make_embeddings: embed,
    make_features: features,
    make_pooled: image_sets,
}


@pytest.mark.parametrize("make", MODULES)
def test_a_killed_encoding_goes_on_and_ends_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    make: Callable[[Setting], Path],
) -> None:  # fmt: skip
    monkeypatch.setattr(MODULES[make], "BATCH", BATCH)
    monkeypatch.setattr(encoding, "KEEP_SECONDS", 0.0)
    shards = write_split(tmp_path / "shards", "train", COUNT, per_shard=COUNT)
    calm = make(Setting(tmp_path / "calm", shards))
    for fail_at in (8, 4):
        killed = Setting(tmp_path / "killed", shards)
        killed.count_images(fail_at)
        with pytest.raises(SystemExit):
            make(killed)
        assert killed.images == fail_at
    capsys.readouterr()
    last = Setting(tmp_path / "killed", shards)
    last.count_images(1000)
    path = make(last)
    said = [line for line in capsys.readouterr().err.splitlines() if "encoded before" in line]
    assert len(said) == 1
    assert said[0].endswith(f": 12 of {COUNT} images were encoded before")
    assert COUNT - 12 <= last.images < COUNT - 12 + BATCH, "the last batch is filled up"
    assert path.name == calm.name
    assert path.read_bytes() == calm.read_bytes()
    assert [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("make", MODULES)
def test_killed_in_its_last_write_nothing_is_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Setting], Path]
) -> None:
    monkeypatch.setattr(encoding, "KEEP_SECONDS", 0.0)
    shards = write_split(tmp_path / "shards", "train", COUNT, per_shard=COUNT)
    last = ((codes, "write_codes"), (encoding, "write_hdf5"), (encoding, "write_if_possible"))
    with monkeypatch.context() as killed:
        for module, name in last:
            killed.setattr(module, name, lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            make(Setting(tmp_path, shards))
    again = Setting(tmp_path, shards)
    again.count_images(0)
    path = make(again)
    assert again.images == 0
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_features_that_were_changed_are_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Probes trained on rows of zeros, which a full disk had left, with exit code 0."""
    shards = write_split(tmp_path / "shards", "train", COUNT, per_shard=COUNT)
    path = make_features(Setting(tmp_path, shards))
    whole = path.read_bytes()
    rows = features.read_features(path)
    place = whole.index(rows[-1].tobytes())
    path.write_bytes(whole[:place] + bytes(rows[-1].nbytes) + whole[place + rows[-1].nbytes :])
    assert not features.read_features(path)[-1].any()
    make_features(Setting(tmp_path, shards))
    assert path.read_bytes() == whole
    assert f"{path}: is damaged; computing it again" in capsys.readouterr().err
