"""Readers of prepared shards, of foreign ones, and of what `mu prepare` resumes from."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from tests.campaign.targets.target import SENTINEL, Target, call

PREPARED = ("manifest.json", "train.index.npy", "test.index.npy", "train-000000.tar")


@functools.cache
def _phantom() -> Any:
    from medunifier_cli.plugin_index import load_dataset

    return load_dataset("phantom")


def make_prepared(folder: Path, home: Path) -> None:
    shutil.copytree(
        home / "data/shards/phantom", folder / "shards", ignore=shutil.ignore_patterns("sheet-*", ".cache")
    )


def read_prepared(folder: Path, path: Path) -> None:
    from medunifier_cli.data.labels.labelled import targets_of
    from medunifier_cli.data.shards import read_manifest, split_names
    from medunifier_cli.data.subset import open_part, parts_of
    from medunifier_cli.run.provenance import data_facts

    shards, plugin = folder / "shards", _phantom()
    read_manifest(shards), split_names(shards), parts_of(shards), data_facts(shards)
    for name in ("train", "test"):
        part = open_part(shards, name)
        try:
            _walk(part)
            part.class_indices(plugin)
            targets_of(part, plugin, "multilabel")
        finally:
            part.close()


def _walk(part: object) -> None:
    import numpy as np

    part.keys(np.arange(len(part)))  # type: ignore[attr-defined, arg-type]
    for number in (0, 1, len(part) - 1):  # type: ignore[arg-type]
        if number < len(part):  # type: ignore[arg-type]
            part.read(number)  # type: ignore[attr-defined]


def make_foreign(folder: Path, home: Path) -> None:
    import json

    from tests.hand_made import sample, write_shard

    rows = []
    for n in range(3):
        key, image, meta = sample(n)
        meta["sections"]["findings"] += f" {SENTINEL}"
        rows.append((key, image, meta))
    write_shard(folder / "shards/train-000000.tar", rows)
    (folder / "parts").mkdir()
    for n, (_, image, meta) in enumerate(rows):
        (folder / "parts" / f"{n}.json").write_text(json.dumps(meta))
        (folder / "parts" / f"{n}.png").write_bytes(image)


def read_foreign(folder: Path, path: Path) -> None:
    """The tar as it is, or packed anew from its parts, one of which is damaged."""
    from medunifier_cli.data.labels.labelled import targets_of
    from medunifier_cli.data.shards import Shards
    from medunifier_cli.data.split_source import SplitSource
    from tests.hand_made import HandMade

    recipe = _recipe()
    place = "shards"
    if path.parent.name == "parts":
        place = "packed"
        _pack(folder)
    shards = Shards.open(folder / place, "train")
    try:
        source = SplitSource(shards, _tokenizer(), recipe.data, recipe.text, HandMade(), need_text=False)
        for number in range(min(3, len(source))):
            source.sample(number)
            source.text(number)
        targets_of(shards, HandMade(), "multilabel")
    finally:
        shards.close()


@functools.cache
def _recipe() -> Any:
    from medunifier_cli.recipe.load import load_recipe

    return load_recipe("full", ["data.image_size=16", "text.max_tokens=12"])


def _tokenizer() -> object:
    from medunifier_cli.data.texts.tokenizer import TextTokenizer

    return TextTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"])


def _pack(folder: Path) -> None:
    import io
    import tarfile

    shutil.rmtree(folder / "packed", ignore_errors=True)
    (folder / "packed").mkdir()
    with tarfile.open(folder / "packed/train-000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted((folder / "parts").iterdir()):
            body = path.read_bytes()
            info = tarfile.TarInfo(path.name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


SIZES = ("-o", "train=4", "-o", "valid=2", "-o", "test=2")


def prepare(folder: Path, path: Path | None = None) -> None:
    call(
        "prepare",
        "phantom",
        "--size",
        "32",
        "--shard-size",
        "3",
        "--workers",
        "1",
        *SIZES,
        "--out",
        str(folder / "shards"),
    )


def make_begun(folder: Path, home: Path) -> None:
    prepare(folder)


TARGETS = [
    Target(
        "manifest, index and shards",
        12,
        [f"shards/{name}" for name in PREPARED],
        make_prepared,
        read_prepared,
    ),
    Target(
        "shards without manifest", 16, ("shards/*.tar", "parts/*"), make_foreign, read_foreign, fresh=True
    ),
    Target(
        "prepare that resumes",
        1,
        ("shards/.progress/*.json*", "shards/manifest.json", "shards/*.tar"),
        make_begun,
        prepare,
        fresh=True,
        batch=30,
    ),
]
