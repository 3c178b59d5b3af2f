"""experiments/figure.py: which images it shows, and where."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from experiments.figure import EDGE, GAP, main

LEVELS = {"original": 40, "reconstruction": 120, "synthetic": 200}


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, "png")
    return file.getvalue()


def lines(path: Path, *rows: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_and_captions_are_those_of_the_demo(tmp_path: Path) -> None:
    keys = ["a", "b", "c"]
    reports = [{"key": key, "reference": f"ref {key}", "hypothesis": f"hyp {key}"} for key in keys]
    lines(tmp_path / "runs/demo/results/reports-phantom-test.jsonl", *reports)
    lines(tmp_path / "samples/samples.jsonl", *({"image": f"{k}.png", "prompt": f"p {k}"} for k in keys))
    # reconstructions are found by key: here in another order than the reports
    rows = [{"key": key, "image": f"{number}.png"} for number, key in enumerate("cba")]
    lines(tmp_path / "reconstructed/samples.jsonl", *rows)
    for number, key in enumerate("cba"):
        level = LEVELS["reconstruction"] + ord(key)
        (tmp_path / "reconstructed" / f"{number}.png").write_bytes(png(level))
        (tmp_path / "samples" / f"{key}.png").write_bytes(png(LEVELS["synthetic"]))
    shard = tmp_path / "data/shards/phantom/test-000000.tar"
    shard.parent.mkdir(parents=True)
    with tarfile.open(shard, "w") as archive:
        for key in keys:
            info = tarfile.TarInfo(f"{key}.png")
            info.size = len(png(LEVELS["original"]))
            archive.addfile(info, io.BytesIO(png(LEVELS["original"])))

    out = tmp_path / "out.png"
    line = ["--demo", str(tmp_path), "--out", str(out), "--columns", "2"]
    done = CliRunner().invoke(main, line, catch_exceptions=False)
    assert done.output.splitlines()[2:] == ["| 1 | ref a | hyp a | p a |", "| 2 | ref b | hyp b | p b |"]
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (3 * EDGE + 2 * GAP, 2 * EDGE + GAP)
    middle = [EDGE // 2 + row * (EDGE + GAP) for row in range(3)]
    first, second = LEVELS["reconstruction"] + ord("a"), LEVELS["reconstruction"] + ord("b")
    assert sheet[middle, EDGE // 2].tolist() == [LEVELS["original"], first, LEVELS["synthetic"]]
    assert sheet[middle, EDGE + GAP + EDGE // 2].tolist() == [40, second, LEVELS["synthetic"]]
    assert (sheet[EDGE : EDGE + GAP] == 255).all()
