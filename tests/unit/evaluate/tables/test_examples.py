"""Examples for the page of a run: from the shards that were measured, or without their images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.evaluate.tables.examples import report_examples, retrieval_examples
from medunifier_cli.files import sha256
from medunifier_cli.run.record import Run
from tests.hand_made import sample, write_split

N = 16


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MU_DATA", str(tmp_path / "none"))
    folder = write_split(tmp_path / "shards", "test", N, per_shard=N)
    (folder / "manifest.json").write_text("{}")  # as shards of others, which phantom's sections fit
    return folder


def results(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Each image's report, and for each the texts of itself, of its follower and of one that is not there."""
    data = {"shards": str(folder), "manifest": sha256(folder / "manifest.json")}
    keys = [sample(n)[0] for n in range(N)]
    reports = [{"key": key, "reference": f"Case {key}.", "hypothesis": "Case one."} for key in keys]
    found = [
        {"key": key, "class": "Edema", "image_to_text": [key, keys[n - 1], "gone"],
         "image_to_text_scores": [0.9, 0.8, 0.7]}
        for n, key in enumerate(keys)
    ]  # fmt: skip
    run.results.mkdir(parents=True)
    for name, rows in (("reports-phantom-test", reports), ("retrieval-phantom-test.samples", found)):
        (run.results / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        {"task": task, "dataset": "phantom", "split": "test", "data": data}
        for task in ("report", "retrieval")
    ]


def test_examples_are_spread_and_have_image_and_texts_of_their_key(tmp_path: Path, shards: Path) -> None:
    run = Run(tmp_path / "r")
    measured = results(run, shards)
    reports, files = report_examples(run, measured)
    assert reports is not None
    assert files == [run.results / "reports-phantom-test.jsonl", shards]
    assert [one.key for one in reports.examples] == [sample(n)[0] for n in (0, 2, 5, 8, 10, 13)]
    assert all(one.image and one.image.width == 16 for one in reports.examples)
    assert reports.examples[0].reference == [("Case", False), ("s00000.", True)]
    retrieval, files = retrieval_examples(run, measured)
    assert retrieval is not None
    assert files == [shards]
    assert [one.about for one in retrieval.examples] == [
        f"{sample(n)[0]}, class Edema" for n in (0, 4, 8, 12)
    ]
    own, other = retrieval.examples[1].hits
    sections = sample(4)[2]["sections"]
    assert sections["findings"] in own.text
    assert sections["impression"] in own.text
    assert (own.score, own.about) == (0.9, "class Edema, the image's own text")
    assert (other.score, other.about) == (0.8, "class Edema")
    assert sample(3)[2]["sections"]["impression"] in other.text


def test_shards_that_are_others_now_give_no_image(tmp_path: Path, shards: Path) -> None:
    run = Run(tmp_path / "r")
    measured = results(run, shards)
    (shards / "manifest.json").write_text("{ }")
    reports, files = report_examples(run, measured)
    assert reports is not None
    assert [one.image for one in reports.examples] == [None] * 6
    assert files == [run.results / "reports-phantom-test.jsonl"]
    assert retrieval_examples(run, measured) == (None, [])


def test_damaged_shards_cost_no_page(tmp_path: Path, shards: Path) -> None:
    run = Run(tmp_path / "r")
    measured = results(run, shards)
    report_examples(run, measured)  # which makes the index
    (tar,) = shards.glob("*.tar")
    whole = tar.read_bytes()
    tar.write_bytes(b"\xff" * len(whole))
    reports, _ = report_examples(run, measured)
    assert reports is not None
    retrieval_examples(run, measured)
