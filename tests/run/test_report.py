"""`mu report` and `mu score --reports` as a user calls them, on a small phantom."""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.cli import mu
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.evaluate.reports import writer as report_writer
from medunifier_cli.evaluate.reports.decoding import DecodedText
from medunifier_cli.evaluate.reports.scoring import constant_report, score_rows
from medunifier_cli.evaluate.reports.writer import Decoding, Writer
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.run.record import Run
from medunifier_cli.scores.text import meteor

RECIPE = Path(__file__).parent / "small_phantom.yaml"


def call(root: Path, *arguments: object) -> Result:
    """`mu` with data and runs under `root`."""
    env = {"MU_DATA": str(root / "data"), "MU_RUNS": str(root / "runs"), "OMP_NUM_THREADS": "1"}
    return CliRunner().invoke(mu, [str(argument) for argument in arguments], env=env)


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """METEOR takes seconds to start; `tests/parity/test_text_metrics.py` has it."""
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of few images and a run of few steps, trained with section marks."""
    folder = tmp_path_factory.mktemp("reports")
    sizes = ("-o", "train=40", "-o", "valid=8", "-o", "test=12")
    for command in (
        ("prepare", "phantom", "--size", 32, *sizes),
        ("pretrain", RECIPE, "--name", "r", "-o", "text.section_marks=true", "-o", "train.steps=3"),
    ):
        done = call(folder, *command)
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def trained(root: Path) -> PretrainedRun:
    return restore(Run(root / "runs" / "r"))


def shard(root: Path) -> dict[str, bytes]:
    """Members of the test split's only shard."""
    with tarfile.open(root / "data/shards/phantom/test-000000.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_split_is_reported_on_beside_its_references(root: Path) -> None:
    done = call(root, "report", "--run", "r", "--max-tokens", 20, "--no-repeat-ngram", 2)
    assert done.exit_code == 0, done.output
    results = root / "runs/r/results"
    rows, members = lines(results / "reports-phantom-test.jsonl"), shard(root)
    keys = [name.removesuffix(".json") for name in members if name.endswith(".json")]
    assert [row["key"] for row in rows] == keys
    for row in rows:
        meta = json.loads(members[row["key"] + ".json"])
        parts = meta["sections"]
        assert row["reference"] == f"{parts['findings']} {parts['impression']}"
        assert row["reference_sections"] == {name: parts[name] for name in ("findings", "impression")}
        assert row["subject"] == meta["subject"]
    result = json.loads((results / "report-phantom-test.json").read_text())
    for field in ("protocol", "n", "seed", "checkpoint", "data", "versions", "metrics", "decoding"):
        assert field in result, field
    assert result["n"] == 12
    assert result["limit"] == 0
    assert "3 beams" in result["protocol"]
    metrics = {metric["name"]: metric for metric in result["metrics"]}
    for name in ("BLEU-4", "ROUGE-L", "finding micro-F1"):
        assert f"{metrics[name]['value']:.3f}" in done.stdout
        assert metrics[name]["floor"] is not None
    assert 0 < metrics["ROUGE-L"]["floor"] < 1
    assert metrics["METEOR"]["value"] is None
    assert done.stderr.count("METEOR 1.5 needs Java") == 1
    of_each = lines(results / "reports-phantom-test.scores.jsonl")
    assert [row["key"] for row in of_each] == keys
    assert np.mean([row["rouge_l"] for row in of_each]) == pytest.approx(metrics["ROUGE-L"]["value"])
    assert 1 <= metrics["distinct reports"]["value"] <= 12
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    assert call(root, "report", "--run", "r", "--max-tokens", 20, "--no-repeat-ngram", 2).exit_code == 0
    assert before == {path.name: path.read_bytes() for path in results.iterdir()}
    assert not any(row["reference"][:30] in done.output for row in rows)


def test_another_user_can_read_a_run_and_its_reports_where_they_can_read_the_data(
    root: Path, tmp_path: Path
) -> None:
    """The modes of everything that preparing, pre-training and reporting have written."""
    umask = os.umask(0o022)
    os.umask(umask)
    for path in [root / "runs/r", *(root / "runs/r").rglob("*"), *(root / "data").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
    shards = root / "data/shards/phantom"
    (shards / "test-000000.tar").chmod(0o600)
    try:
        reported = call(root, "report", "--run", "r", "--limit", 2, "--max-tokens", 6, "--out", tmp_path)
    finally:
        (shards / "test-000000.tar").chmod(0o644)
    assert reported.exit_code == 0, reported.output
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes["reports-phantom-test.jsonl"] == modes["reports-phantom-test.constant.txt"] == 0o600
    for name in ("report-phantom-test.json", "reports-phantom-test.scores.jsonl"):
        assert modes[name] == 0o666 & ~umask, name


def test_sampled_reports_depend_on_seed_and_key(root: Path, tmp_path: Path) -> None:
    def drawn(name: str, *arguments: object) -> list[str]:
        options = ("--run", "r", "--sample", "nucleus", "--top-p", 0.95, "--out", tmp_path / name)
        done = call(root, "report", *options, *arguments)
        assert done.exit_code == 0, done.output
        return [row["hypothesis"] for row in lines(tmp_path / name / "reports-phantom-test.jsonl")]

    whole = drawn("whole", "--seed", 1)
    assert drawn("part", "--seed", 1, "--limit", 5) == whole[:5]
    assert len(set(whole)) > 6
    other = drawn("other", "--seed", 2)
    assert sum(a != b for a, b in zip(whole, other, strict=True)) > 6


def test_files_give_the_texts_of_the_split(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with two kinds of image, and a cut one: it is reported by name, the others get reports."""
    assert call(root, "report", "--run", "r", "--sample", "greedy", "--out", tmp_path / "out").exit_code == 0
    said = {row["key"]: row for row in lines(tmp_path / "out/reports-phantom-test.jsonl")}
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    members = shard(root)
    keys = list(said)[:4]
    for key in keys[:3]:
        name = next(name for name in members if name.startswith(key) and not name.endswith(".json"))
        (folder / f"{key}.png").write_bytes(members[name])
    picture = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1)))
    picture.save(folder / "below" / "ramp.jpg")
    (folder / "cut.png").write_bytes((folder / f"{keys[0]}.png").read_bytes()[:200])
    (folder / ".hidden").write_text("not an image")
    done = call(root, "report", "--run", "r", "--sample", "greedy", "--json", folder)
    assert done.exit_code == 0, done.output
    found = {Path(row["file"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {*(f"{key}.png" for key in keys[:3]), "ramp.jpg", "cut.png"}
    assert "truncated" in found["cut.png"]["skipped"]
    assert "cut.png" in done.stderr
    assert "1 of 5 files left out" in done.stderr
    for key in keys[:3]:
        assert found[f"{key}.png"]["report"] == said[key]["hypothesis"]
    monkeypatch.setattr(report_writer, "BATCH", 2)
    again = call(root, "report", "--run", "r", "--sample", "greedy", "--json", folder)
    assert sorted(again.stdout.splitlines()) == sorted(done.stdout.splitlines())
    assert "1 of 5 files left out" in again.stderr
    monkeypatch.setattr(report_writer, "BATCH", 1)
    assert call(root, "report", "--run", "r", folder / "cut.png", folder / "cut.png").exit_code == 1
    plain = call(root, "report", "--run", "r", "--sample", "greedy", folder / f"{keys[0]}.png")
    assert " ".join(said[keys[0]]["hypothesis"].split()) in " ".join(plain.stdout.split())
    alone = call(root, "report", "--run", "r", folder / "cut.png")
    assert alone.exit_code == 1
    assert "cut.png" in alone.stderr
    assert not alone.stdout


def test_sections_come_apart(trained: PretrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "FINDINGS: The heart is normal. No effusion. IMPRESSION: No acute disease."
    tokens = trained.tokenizer.encode(text, 60)[1:-1]
    monkeypatch.setattr(report_writer, "greedy", lambda *_: [DecodedText(tokens, ended=True)])
    writer = Writer(trained, Decoding(how="greedy"), ("findings", "impression"))
    report = writer.write(blank(trained), ["a"])[0]
    assert report.sections["impression"] == "No acute disease."
    assert report.text == " ".join(report.sections.values())
    assert "FINDINGS" not in report.text.upper()


def blank(trained: PretrainedRun) -> Any:
    import torch

    size = trained.recipe.data.image_size
    return torch.zeros(1, 1, size, size, dtype=torch.uint8)


def test_mistakes_are_reported_in_one_line(root: Path, trained: PretrainedRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, code, words in (
        (("--max-tokens", 200), 1, "trained on at most 93 tokens"),
        (("--max-tokens", 5, "--min-tokens", 6), 1, "above the maximum length, 5 tokens"),
        (("--split", "nowhere"), 1, "nowhere"),
        ((tmp_path / "none.png",), 1, "no such file"),
        ((tmp_path / "empty",), 1, "no file in this folder"),
        ((RECIPE, "--split", "test"), 2, "--split is for a split"),
        (("--beams", "2", "--sample", "greedy"), 2, "--beams is for --sample beam"),
    ):
        done = call(root, "report", "--run", "r", *arguments)
        assert done.exit_code == code, (arguments, done.output)
        assert words in done.output
        assert "Traceback" not in done.output
    without = dataclasses.replace(trained.recipe.objectives, itg=0.0)
    other = dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, objectives=without))
    with pytest.raises(CheckpointError, match="trained without ITG"):
        Writer(other, Decoding(), ("findings",))


def test_the_baseline_is_a_typical_training_report(root: Path, trained: PretrainedRun) -> None:
    plugin = load_dataset("phantom")
    train = SplitSource(
        Shards.open(root / "data/shards/phantom", "train"), trained.tokenizer, trained.recipe.data,
        trained.recipe.text, plugin,
    )  # fmt: skip
    constant = constant_report(train, trained.tokenizer)
    texts = [report_writer.whole_text(train, i) for i in range(len(train))]
    assert constant == constant_report(train, trained.tokenizer)

    def common(a: str, b: str) -> float:
        one, two = set(a.lower().split()), set(b.lower().split())
        return len(one & two) / len(one | two)

    def likeness(text: str) -> float:
        return float(np.mean([common(text, other) for other in texts]))

    assert likeness(constant) > np.median([likeness(text) for text in texts])


def test_texts_with_and_without_marks_are_cached_apart(root: Path, trained: PretrainedRun) -> None:
    shards, plugin = Shards.open(root / "data/shards/phantom", "valid"), load_dataset("phantom")

    def first(marks: bool) -> list[int]:
        text = dataclasses.replace(trained.recipe.text, section_marks=marks)
        source = SplitSource(shards, trained.tokenizer, trained.recipe.data, text, plugin)
        return list(source.sample(0).token_ids)

    plain, marked = first(False), first(True)
    assert trained.tokenizer.decode(marked).startswith("findings")
    assert not trained.tokenizer.decode(plain).startswith("findings")
    assert (first(False), first(True)) == (plain, marked)


PHANTOM = [
    ("There is mild cardiomegaly. No effusion.", "The heart is mildly enlarged. No effusion."),
    ("A small left effusion. Mild edema.", "A small left effusion is seen."),
    ("No acute disease.", "Severe edema."),
]
"""Reference and hypothesis. Asserted: cardiomegaly rightly; effusion rightly, edema missed; edema wrongly."""


def test_findings_are_scored_as_counted_by_hand() -> None:
    rows = [{"reference": a, "hypothesis": b, "subject": str(i)} for i, (a, b) in enumerate(PHANTOM)]
    scored = score_rows(rows, load_dataset("phantom"), "Severe edema.")
    values = {metric.name: metric for metric in scored.metrics}
    assert values["finding micro-F1"].value == pytest.approx(2 * 2 / (3 + 3))
    assert values["finding micro-F1"].baseline == pytest.approx(2 * 1 / (3 + 3))
    assert scored.per_finding["Edema"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "positives": 1}
    assert scored.per_finding["Pleural Effusion"]["f1"] == 1
    assert scored.per_finding["Pneumonia"]["f1"] is None
    low, high = values["finding micro-F1"].low, values["finding micro-F1"].high
    assert low is not None
    assert high is not None
    assert low < 2 / 3 < high


def test_a_perfect_report_scores_one(root: Path, tmp_path: Path) -> None:
    text = "The heart is mildly enlarged. There is no effusion."
    other = "A small left effusion is present. The lungs are clear."
    path = tmp_path / "reports.jsonl"
    path.write_text("".join(json.dumps({"reference": t, "hypothesis": t}) + "\n" for t in (text, other)))
    done = call(root, "score", "--reports", path, "--format", "csv")
    assert done.exit_code == 0, done.output
    cells = dict(line.split(",")[:2] for line in done.stdout.splitlines() if '"' not in line)
    assert [float(cells[name]) for name in ("BLEU-1", "BLEU-4", "ROUGE-L")] == pytest.approx([1, 1, 1])
    assert "finding micro-F1" not in cells  # the file names no data set
    assert "no reports.constant.txt next to" in done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no report to score"),
        ('{"reference": "secret heart"}\n', "reports.jsonl, report 1: "),
        ('{"reference": "a", "hypothesis": "b"}\nsecret heart\n', "reports.jsonl:2: "),
        ('{"reference": "___", "hypothesis": "secret heart"}\n', "none has a reference with words"),
    ],
)
def test_a_bad_file_of_reports_is_named_without_its_text(
    root: Path, tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "reports.jsonl"
    path.write_text(content)
    done = call(root, "score", "--reports", path)
    assert done.exit_code == 1
    assert words in done.stderr
    assert "secret" not in done.output
    assert len(done.stderr.strip().splitlines()) == 1
    assert call(root, "score", "--reports", tmp_path / "none").exit_code == 1


def test_references_without_words_are_left_out_and_counted() -> None:
    rows = [{"reference": a, "hypothesis": b} for a, b in (*PHANTOM, ("___", "Severe edema."))]
    scored = score_rows(rows, load_dataset("phantom"))
    assert scored.n == 3
    assert "1 of 4 references have no words; left out" in scored.notes
    with pytest.raises(DataError, match="no report to score"):
        score_rows([], None)


def test_where_nothing_can_be_written_no_report_is_generated_in_vain(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(root / "runs"))
    ask = ("report", "--run", "r", "--split", "test", "--sample", "greedy", "--limit", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "write", None)
        done = call(root, *ask)
    assert done.exit_code == 1
    assert "this user may not write there; give --out FOLDER" in done.stderr.splitlines()[-1]
    done = call(root, *ask, "--out", tmp_path / "mine")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {
        "report-phantom-test.json", "reports-phantom-test.jsonl",
    }  # fmt: skip
