"""experiments/figure.py: which films it shows, where, and what is generated."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
from click.testing import CliRunner
from PIL import Image

from experiments.figure import EDGE, GAP, LEFTS, LETTER, TEXT, main

LEVELS = {"a": 40, "b": 80, "c": 120}


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, "png")
    return file.getvalue()


def test_a_row_has_film_report_similar_film_generated_film_and_prompt(tmp_path: Path) -> None:
    results, cache = tmp_path / "runs/demo/results", tmp_path / "runs/demo/cache"
    shard = tmp_path / "data/shards/phantom/test-000000.tar"
    samples = tmp_path / "samples"
    for folder in (results, cache, shard.parent, samples):
        folder.mkdir(parents=True)
    rows = [json.dumps({"key": key, "reference": "-", "hypothesis": f"hyp {key}"}) for key in LEVELS]
    (results / "reports-phantom-test.jsonl").write_text("\n".join(rows))
    lines = [json.dumps({"image": f"{key}.png", "prompt": f"prompt {key}"}) for key in LEVELS]
    (samples / "samples.jsonl").write_text("\n".join(lines))
    for number, key in enumerate(LEVELS):
        (samples / f"{key}.png").write_bytes(png(200 + number))
    with h5py.File(cache / "embeddings-phantom-test.h5", "w") as file:
        # c is most like a, and a is most like b; no film is its own neighbour
        file["image"] = np.array([[[1.0, 0.0]], [[0.6, -0.8]], [[0.9, 0.43]]], np.float32)
    with tarfile.open(shard, "w") as archive:
        for key, level in LEVELS.items():
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(png(level))
            archive.addfile(info, io.BytesIO(png(level)))

    out = tmp_path / "out.png"
    line = ["--demo", str(tmp_path), "--out", str(out), "--cases", "2"]
    done = CliRunner().invoke(main, line, catch_exceptions=False)
    assert done.exit_code == 0
    picture = np.asarray(Image.open(out))
    assert picture.shape == (2 * LETTER + 2 * EDGE + GAP, LEFTS[-1] + TEXT)
    middle = [EDGE // 2 + LEFTS[column] for column in (0, 2, 3)]
    for row, expected in enumerate(([40, 120, 200], [80, 40, 201])):
        top = 2 * LETTER + row * (EDGE + GAP)
        assert picture[top + EDGE // 2, middle].tolist() == expected
        for column in (1, 4):
            text = picture[top : top + EDGE, LEFTS[column] : LEFTS[column] + TEXT]
            assert text.min() < 100, "words are written there"
