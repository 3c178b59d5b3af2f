"""experiments/real_pairs.py: what it runs, what it leaves alone, and what its tables say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from experiments import real_pairs
from experiments.real_pairs import (
    OTHERS,
    RETRIEVAL,
    VARIANTS,
    hits,
    main,
    page,
    read_pairs,
    run_name,
    train_and_measure,
)
from medunifier_cli.data.shards import Shards
from tests.miniatures.prepared import prepare

RANKS = {"ITC": [1, 30, 11, 400], "ITC ITM ITG": [10, 3, 11, 400], "all four": [1, 2, 3, 4]}
"""Rank of the partner of each of four pairs, in every seed."""


def write(folder: Path, stem: str, *metrics: tuple[str, float, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"name": n, "value": v, "floor": f, "low": v / 2, "high": v * 2} for n, v, f in metrics]
    (folder / f"{stem}.json").write_text(json.dumps({"metrics": rows}))


def finish(home: Path, variant: str, seed: int, recall: float, accuracy: float) -> None:
    """The results of a run, made by hand."""
    name = run_name(variant, seed)
    folder = home / "runs" / name / "results"
    ways = ("image to text", "text to image")
    ranks = [(f"{way}, {what}", value, floor) for way in ways
             for what, value, floor in (("recall@10", recall, 0.02), ("median rank", 123, 250))]  # fmt: skip
    write(folder, "retrieval-pairs-x-ids-pairs", *ranks)
    rows = [{"image_to_text_rank": r, "text_to_image_rank": 5} for r in RANKS[variant]]
    samples = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "retrieval-pairs-x-ids-pairs.samples.jsonl").write_text(samples)
    if variant != "ITC":
        itm = ("ITM accuracy, random pairs", accuracy, 0.5)
        write(folder, "pretraining-x-valid", itm, ("dead codes, top codebook", 112, 511))
        write(folder, "report-x-valid", ("BLEU-4", 0.031, 0.012), ("BLEU-4, each sentence a reference", 9, 9))
    (home / f"{name}.done").write_text("")


def cells(text: str, row: str, column: str) -> list[str]:
    """The cells of that row and column in all tables that have both."""
    found, header = [], []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        parts = [part.strip() for part in line.strip("|").split("|")]
        header = header or parts
        if parts[0] == row and column in header:
            found.append(parts[header.index(column)])
    return found


def test_tables_hold_means_differences_baselines_and_intervals(tmp_path: Path) -> None:
    for seed, recall in enumerate((0.04, 0.06)):
        finish(tmp_path, "ITC", seed, recall, 0)
        finish(tmp_path, "ITC ITM ITG", seed, recall + 0.01 * (seed + 1), 0.6)
    finish(tmp_path, "all four", 0, 0.09, 0.7)
    text = page(tmp_path, 3, {"nearest neighbour": {"R@10 i→t": 3.14, "BLEU-4": 1.5}, "linear": {}})
    assert "ITC: 0, 1; ITC ITM ITG: 0, 1; all four: 0." in text
    # two seeds: Student's t for one degree of freedom is 12.706, the standard error of 4 and 6 is 1
    assert cells(text, "ITC", "R@10 i→t") == ["5.0 ± 12.7"]
    assert cells(text, "ITC ITM ITG", "R@10 i→t") == ["6.5 ± 19.1"]
    assert cells(text, "all four", "R@10 t→i") == ["9.0"]
    assert cells(text, "ITC", "ITM ACC, random") == [""]
    assert cells(text, "all four", "live codes, top") == ["400.0"]
    assert cells(text, "all four", "BLEU-4") == ["3.1"]
    assert cells(text, "no skill", "live codes, top") == ["1.0"]
    assert cells(text, "no skill", "median rank t→i") == ["250.0"]
    assert cells(text, "nearest neighbour", "R@10 i→t") == ["3.1"]
    assert cells(text, "nearest neighbour", "BLEU-4") == ["1.5"]
    # the same seed, then on the same pairs, of which one of four improves with ITM and ITG
    assert cells(text, "ITM and ITG added to ITC", "R@10 i→t")[0] == "+1.5 ± 6.4"
    assert cells(text, "TIG added", "R@10 i→t")[0] == "+4.0"
    assert cells(text, "ITM and ITG added to ITC", "R@10 i→t")[1].startswith("+25.0 (+0.0 to +75.0)")
    assert cells(text, "TIG added", "R@10 t→i")[1] == "+0.0 (+0.0 to +0.0)"
    assert cells(text, "all-four-seed0", "ITM ACC, random") == ["70.0 (35.0 to 140.0) [50.0]"]


def test_a_run_that_is_not_finished_is_not_in_the_tables(tmp_path: Path) -> None:
    finish(tmp_path, "ITC", 0, 0.04, 0)
    (tmp_path / "itc-seed0.done").unlink()
    text = page(tmp_path, 1, {})
    assert "ITC: none" in text
    assert cells(text, "ITC", "R@10 i→t") == [""]
    assert hits(tmp_path, "ITC", 0) is None


def test_every_figure_has_a_name_of_its_own() -> None:
    titles = [figure.title for figure in (*RETRIEVAL, *OTHERS)]
    assert len(set(titles)) == len(titles)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run."""
    seen: list[list[str]] = []

    def record(command: Sequence[str], home: Path, output: int | None = None) -> None:
        seen.append(list(command))

    monkeypatch.setattr(real_pairs, "mu", record)
    return seen


@pytest.mark.parametrize(
    ("variant", "verbs"),
    [
        ("ITC", ["pretrain", "retrieve"]),
        ("ITC ITM ITG", ["pretrain", "retrieve", "report"]),
        ("all four", ["pretrain", "retrieve", "report", "fit-prior"]),
    ],
)
def test_a_run_gets_the_verbs_that_its_objectives_allow(
    variant: str, verbs: list[str], tmp_path: Path, commands: list[list[str]]
) -> None:
    train_and_measure(variant, 1, tmp_path)
    assert [command[0] for command in commands] == verbs
    off = {part for part in commands[0] if re.fullmatch(r"objectives\.\w+=0", part)}
    assert len(off) == 4 - len(VARIANTS[variant])
    assert "train.seed=1" in commands[0]


def test_a_finished_run_is_left_alone_until_the_recipe_changes(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_and_measure("ITC", 0, tmp_path)
    assert "--fresh" not in commands[0]
    commands.clear()
    train_and_measure("ITC", 0, tmp_path)
    assert commands == []
    other = [*real_pairs.options("ITC", 0), "train.steps=7"]
    monkeypatch.setattr(real_pairs, "options", lambda variant, seed: other)
    train_and_measure("ITC", 0, tmp_path)
    assert "--fresh" in commands[0]


def test_a_run_that_was_stopped_resumes(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(command: Sequence[str], home: Path, output: int | None = None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(real_pairs, "mu", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_and_measure("ITC", 0, tmp_path)
    train_and_measure("ITC", 0, tmp_path)
    assert [command[0] for command in commands] == ["pretrain", "retrieve"]
    assert "--fresh" not in commands[0]


def test_baselines_read_the_images_and_captions_of_a_prepared_table(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = ["image,split,caption"]
    for number in range(6):
        film = Image.linear_gradient("L").point(lambda level: level // 8).resize((32, 32))
        film.point(lambda level, at=40 * number: level + at).save(raw / f"film{number}.png")
        lines.append(f"film{number}.png,{'valid' if number > 3 else 'train'},Film {number}.")
    (raw / "pairs.csv").write_text("\n".join(lines) + "\n")
    prepared = prepare("table", raw, tmp_path / "out")
    pairs = read_pairs(Shards.open(prepared.folder, "train"), 32)
    levels = [int(image.min()) // 40 for image in pairs.image_nHW]
    assert dict(zip(levels, pairs.texts, strict=True)) == {i: f"Film {i}." for i in range(4)}


def test_without_a_table_it_asks_for_one(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--home", str(tmp_path), "--table"])
    assert result.exit_code == 2
    assert "--raw" in result.output
