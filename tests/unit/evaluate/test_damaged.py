"""Whatever stands in the files of a run or of another program: it is read, or it is one clean line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.errors import MuError, one_line
from medunifier_cli.evaluate.reports.comparing import compare_files
from medunifier_cli.evaluate.reports.scoring import LONGEST, read_rows
from medunifier_cli.evaluate.results import read_results
from medunifier_cli.evaluate.retrieval.prompts import read_prompts
from medunifier_cli.evaluate.synthesis.image_sets import FolderImages
from medunifier_cli.evaluate.synthesis.requests import read_requests
from medunifier_cli.evaluate.synthesis.sample_folder import LINES, SETTINGS, SampleFolder, read_settings
from medunifier_cli.evaluate.tables.beside_paper import read_evidence, sections
from medunifier_cli.evaluate.tables.page_contents import contents_of
from medunifier_cli.evaluate.tables.saved_outputs import score_outputs
from medunifier_cli.page.run_page import Contents, write_run_page
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.recipe.load import dump_recipe, load_recipe
from medunifier_cli.run.record import Run
from medunifier_cli.scores import bootstrap
from tests.hostile import changed_bytes, changed_values

PHANTOM = load_dataset("phantom")
METRIC = {"name": "R@1", "value": 0.5, "floor": 0.1, "unit": "%", "note": "", "low": 0.1, "high": 0.9}
RESULT = {
    "task": "retrieval", "dataset": "mimic-cxr", "split": "5x200", "n": 3, "seed": 0, "real": {"name": "a"},
    "metrics": [METRIC, METRIC | {"value": None}], "checkpoint": {"step": 3, "hash": "ab"},
}  # fmt: skip
START = {"command": ["mu", "x"], "versions": {"torch": "2"}, "git_commit": "abc", "git_changed": True}
PROVENANCE = {"data": {"phantom": {"manifest": "m"}}, "starts": [START, START]}
LOG = [{"event": "train", "step": step, "total": 1 / step} for step in range(1, 5)]
SAMPLES = [{"image": f"{i:06d}.png", "sample": i, "prompt": "p", "class": "Edema"} for i in range(3)]
REPORTS = [
    {"key": f"k{i}", "dataset": "phantom", "subject": f"s{i}", "reference": "Edema.", "hypothesis": "None."}
    for i in range(4)
]
OUTPUTS = [{"key": f"k{i}", "class": "ab"[i % 2], "probabilities": {"a": i / 9, "b": 0.3}} for i in range(6)]
RANKED = ["k0", "k1", "k2"]
RANKINGS = [
    {"key": key, "class": "ab"[i % 2], "image_to_text": RANKED, "text_to_image": RANKED[::-1]}
    for i, key in enumerate(RANKED)
]
TABLE = b"prompt,class\na,b\nc\n"
PROMPTS = b"Edema: [one, two]\nPneumonia: [three]\n"


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def as_lines(rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])).encode()


def results(folder: Path, content: bytes) -> None:
    run = Run(folder / "runs" / "r")
    run.results.mkdir(parents=True, exist_ok=True)
    (run.results / "retrieval.json").write_bytes(content)
    write_run_page(run, contents_of(run), {})
    sections([read_evidence(run)])


def run_files(folder: Path, content: bytes) -> None:
    """Provenance and log: a run can do without them, so nothing but a warning may come out."""
    run, recipe = Run(folder / "r"), load_recipe("demo")
    run.folder.mkdir(exist_ok=True)
    if not run.recipe.exists():
        run.recipe.write_text(dump_recipe(recipe))
    for path in (run.provenance, run.log):
        path.write_bytes(content)
    try:
        write_run_page(run, Contents(), {"total": "Total"})
        run.begin(recipe, {}, ["mu"])
    except MuError as error:
        raise AssertionError("a run needs neither file to go on") from error
    assert len(json.loads(run.provenance.read_text())["starts"]) >= 1


def samples(folder: Path, content: bytes) -> None:
    (folder / SETTINGS).write_text('{"pretrained": "a"}')
    (folder / LINES).write_bytes(content)
    FolderImages(folder, 32, "a", PHANTOM).findings()
    SampleFolder(folder, read_settings(folder)).finish()


def sample_settings(folder: Path, content: bytes) -> None:
    (folder / SETTINGS).write_bytes(content)
    SampleFolder(folder, {"pretrained": "a"})


def reports(folder: Path, content: bytes) -> None:
    (folder / "a.jsonl").write_bytes(content)
    (folder / "b.jsonl").write_bytes(as_lines(REPORTS))
    compare_files(folder / "a.jsonl", folder / "b.jsonl", draws=5)


def outputs(folder: Path, content: bytes) -> None:
    (folder / "out.jsonl").write_bytes(content)
    score_outputs(folder / "out.jsonl")


def prompts(folder: Path, content: bytes) -> None:
    (folder / "p.yaml").write_bytes(content)
    read_prompts(folder / "p.yaml", ("Edema", "Pneumonia"))


def table_of_prompts(folder: Path, content: bytes) -> None:
    (folder / "p.csv").write_bytes(content)
    read_requests("", str(folder / "p.csv"), PHANTOM)


READERS: dict[str, tuple[Callable[[Path, bytes], None], Callable[[random.Random], bytes], int]] = {
    "results": (results, lambda draws: as_json(changed_values(RESULT, draws)), 60),
    "provenance": (run_files, lambda draws: as_json(changed_values(PROVENANCE, draws)), 10),
    "log": (run_files, lambda draws: as_lines(changed_values(LOG, draws)), 10),
    "samples": (samples, lambda draws: as_lines(changed_values(SAMPLES, draws)), 60),
    "settings": (sample_settings, lambda draws: as_json(changed_values({"pretrained": "a"}, draws)), 30),
    "reports": (reports, lambda draws: as_lines(changed_values(REPORTS, draws)), 60),
    "outputs": (outputs, lambda draws: as_lines(changed_values(OUTPUTS, draws)), 100),
    "rankings": (outputs, lambda draws: as_lines(changed_values(RANKINGS, draws)), 100),
    "prompts": (prompts, lambda draws: changed_bytes(PROMPTS, draws), 100),
    "table of prompts": (table_of_prompts, lambda draws: changed_bytes(TABLE, draws), 100),
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few resamples and no Java: neither reads the file."""

    def without_java(*_: object) -> None:
        from medunifier_cli.scores.text.meteor import MeteorUnavailableError

        raise MeteorUnavailableError("left out of this test")

    few = bootstrap.intervals
    monkeypatch.setattr("medunifier_cli.run.record.git_state", dict)
    monkeypatch.setattr("medunifier_cli.run.record.versions", dict)
    monkeypatch.setattr("medunifier_cli.evaluate.reports.comparing.meteor", without_java)
    monkeypatch.setattr(
        "medunifier_cli.evaluate.tables.saved_outputs.intervals",
        lambda statistic, n: few(statistic, n, draws=3),
    )


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", READERS)
def test_changed_values_and_bytes_are_read_or_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read, make, tries = READERS[name]
    draws, lines, whole = random.Random(name), [], 0
    for number in range(tries):
        content = make(draws)
        if number % 2:
            content = changed_bytes(content, draws)
        try:
            read(tmp_path, content)
            whole += 1
        except MuError as error:
            lines.append(str(error))
    lines += [line.removeprefix("mu: ") for line in capsys.readouterr().err.splitlines()]
    assert lines  # otherwise nothing was damaged
    assert whole or name == "settings"  # otherwise nothing was reached; other settings are refused
    assert lines == [one_line(line) for line in lines]


def test_the_page_and_the_start_of_a_run_survive_a_damaged_provenance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.begin(load_recipe("demo"), {"phantom": {}}, ["mu", "first"])
    run.provenance.write_bytes(run.provenance.read_bytes()[:-9])
    write_run_page(run, Contents(), {})
    run.begin(load_recipe("demo"), {"phantom": {}}, ["mu", "second"])
    (start,) = json.loads(run.provenance.read_text())["starts"]
    assert start["command"] == ["mu", "second"]
    assert "first" in (tmp_path / "provenance.damaged.json").read_text()
    left_out, begun = capsys.readouterr().err.splitlines()
    assert left_out.endswith("left out of the page")
    assert begun.endswith("kept as provenance.damaged.json, and a new one is begun")


def test_a_damaged_result_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "retrieval.json").write_bytes(as_json(RESULT)[:-5])
    with pytest.raises(MuError, match=r"retrieval\.json: is no JSON .*; measure it again, or delete "):
        read_results(tmp_path)


def test_a_text_that_is_no_report_is_refused_before_it_takes_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(as_lines([*REPORTS, REPORTS[0] | {"hypothesis": "lung " * LONGEST}]))
    with pytest.raises(MuError, match=r"r\.jsonl, report 5: a text of more than 50,000 characters") as caught:
        read_rows(path)
    assert "lung" not in str(caught.value)


def test_a_sample_outside_of_its_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / LINES).write_bytes(as_lines([SAMPLES[0] | {"image": "../secret.png"}]))
    with pytest.raises(MuError, match="names an image outside of the folder"):
        FolderImages(tmp_path, 32)
