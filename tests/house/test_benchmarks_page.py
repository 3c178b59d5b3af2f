"""BENCHMARKS.md: a row for each key, the command beside it, and sections that were not run again stay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks.page.hardware import hardware, processor
from benchmarks.page.meaning import MEANINGS, meaning_of
from benchmarks.page.write import MISSING, Ran, page, section, sections_of, shown
from tests.house.file_map import ROOT

SCRIPT = ROOT / "benchmarks" / "run.py"
RESULT = {"benchmark": "tig", "share_alone": 0.51234, "median_s": {"tig": 1.5, "three": 12}, "spread": [1, 2]}


def rows(text: str) -> dict[str, list[str]]:
    """Key -> cells of a section's table."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): cells[1:] for cells in lines}


def test_each_key_has_a_row_with_its_meaning_and_the_command() -> None:
    text = section("tig", Ran("python benchmarks/tig.py", 61.4, RESULT, ""), "1 May 2026", "a CPU")
    assert "1 May 2026; a CPU; 61 s." in text
    assert rows(text) == {
        key: [value, MEANINGS["tig"][key], "`python benchmarks/tig.py`"]
        for key, value in {
            "share_alone": "0.512",
            "median_s": "tig: 1.5; three: 12",
            "spread": "1, 2",
        }.items()
    }


def test_rows_that_need_a_gpu_are_there_and_empty() -> None:
    ran = Ran("python benchmarks/gpu.py", 3, {"benchmark": "gpu", "device": None}, "")
    text = section("gpu", ran, "today", "no GPU", run.BENCHMARKS["gpu"].keys)
    assert "It needs a GPU, and none was at hand." in text
    assert all(cells[0] == "" for cells in rows(text).values())
    assert {"samples_per_s_1_live", "samples_per_s_1_cached", "resumed_bit_equal"} <= rows(text).keys()
    with_one = section("gpu", Ran("", 3, {"device": "H100"}, ""), "", "")
    assert "none was at hand" not in with_one


def test_a_benchmark_without_a_result_says_why() -> None:
    text = section("step", Ran("python benchmarks/step.py", 900, None, "it was stopped after 900 s"), "", "")
    assert "`python benchmarks/step.py` has no result: it was stopped after 900 s." in text


def test_sections_that_were_not_run_again_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, called = tmp_path / "BENCHMARKS.md", []

    def measured(name: str, tiny: bool) -> Ran:
        called.append(name)
        return Ran(f"python benchmarks/{name}.py", len(called), {"batch": len(called)}, "")

    def main(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["run.py", "--page", str(target), *words])
        with pytest.raises(SystemExit) as ended:
            run.main()
        assert ended.value.code == 0

    monkeypatch.setattr(run, "run", measured)
    main("--only", "tig", "step")
    first = sections_of(target.read_text())
    assert list(first) == ["step", "tig"]
    main("--only", "step")
    second = sections_of(target.read_text())
    assert second["tig"] == first["tig"]
    assert rows(second["step"])["batch"][0] == "3"
    main("--missing", "--only", "step", "growth", "tig")
    assert called == ["tig", "step", "step", "growth"]
    assert page(sections_of(target.read_text()), run.BENCHMARKS) == target.read_text()
    whole = dict.fromkeys(run.BENCHMARKS, "## a\n")
    assert MISSING in target.read_text()
    assert MISSING not in page(whole, run.BENCHMARKS)


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("print('{\"batch\": 7}')", ""),
        ("import sys; sys.exit(3)", "it ended with 3"),
        ("print('no json')", "its last line is no JSON"),
        ("import time; time.sleep(60)", "it was stopped after 2 s"),
    ],
)
def test_a_benchmark_that_fails_or_hangs_stops_no_other(
    script: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "tig.py").write_text(script)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setitem(run.BENCHMARKS, "tig", run.Benchmark("--batch 2", 2.0))
    ran = run.run("tig", tiny=False)
    assert (ran.command, ran.problem) == ("python benchmarks/tig.py --batch 2", problem)
    assert ran.result == (None if problem else {"batch": 7})


def test_the_page_that_is_there_names_every_benchmark_and_explains_every_key() -> None:
    text = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    sections = sections_of(text)
    assert page(sections, run.BENCHMARKS) == text
    for name, text in sections.items():
        for key, cells in rows(text).items():
            assert cells[1] == meaning_of(name, key) != "", f"{name}: {key}"
            assert cells[2].startswith(f"`python benchmarks/{name}.py")


@pytest.mark.parametrize(
    ("value", "cell"),
    [(None, ""), (True, "yes"), (1234567, "1,234,567"), (0.000123, "0.000123"), (5432.1, "5,432"), ({}, "")],
)
def test_values_are_short(value: Any, cell: str) -> None:
    assert shown(value) == cell


def test_hardware_names_processor_cores_and_torch(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n")
    assert processor(tmp_path / "cpuinfo") == "A CPU @ 2 GHz"
    text = hardware()
    assert "cores, " in text
    assert "PyTorch " in text


def test_runs_as_a_script(tmp_path: Path) -> None:
    """With the cheapest one, which finds no GPU or needs two tiny steps of it."""
    target = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--only", "deterministic", "--tiny", "--page", target],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "device" in rows(target.read_text())
    assert json.dumps("ratio") in done.stdout
