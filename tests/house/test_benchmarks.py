"""Every benchmark runs, on tiny sizes, and ends with one JSON line that has the keys others read."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
KEYS = {
    "deterministic": {"ratio", "device"},
    "decoding": {"ratio", "same_texts", "images_per_second", "threads"},
    "features": {
        "ratio", "processor_ratio", "pairs_per_second_live", "pairs_per_second_cached",
        "largest_difference_of_loss", "bytes_per_sample", "read_samples_per_second", "read_mb_per_second",
    },
    "growth": {"sizes", *(f"{part}_{name}" for part in ("retrieval", "embedding", "copies", "fid")
                          for name in ("mib", "cpu_seconds"))},
    "loader": {"share_of_decode", "share_1", "share_2", "processor_share_1", "growth_mib", "small_samples"},
    "objectives": {"ratio", "flop_ratio", "ratio_alternate", "median_s", "peak_mib", "largest_difference"},
    "prepare": {"ratio_1", "ratio_grey_1", "mean_difference", "kills", "identical_after_kills", "images"},
    "ranking": {"ratio", "largest_difference", "large_peak_mib", "large_within_2_gib"},
    "sampling": {"ratio_batch8", "ratio_batch32", "over_one_forward", "samples_per_second_batch32"},
    "step": {
        f"{key}_{ranks}_{kind}"
        for ranks in (1, 4)
        for kind in ("live", "cached")
        for key in (
            "blocking_transfers", "launches", "gigabytes", "peak_gib", "tflop_per_sample",
            "predicted_samples_per_s",
        )
    },
    "threads": {"ratio_alone", "ratio_beside", "same_numbers", "pairs_per_second_passive_beside"},
    "tig": {"share_of_objectives", "share_alone", "flop_share", "decoder_million_parameters", "median_s"},
}  # fmt: skip
CEILINGS = {
    "blocking_transfers_1_live": 1, "blocking_transfers_4_live": 2,
    "blocking_transfers_1_cached": 1, "blocking_transfers_4_cached": 2,
    "transfers_4_live": 16, "launches_1_live": 1440, "launches_4_live": 1540, "collectives_4_live": 27,
}  # fmt: skip
"""Of `step --tiny`: where no GPU is at hand, nothing else would notice a step that waits for one. The norm of
features and the revival of dead codes in `full.yaml` take 6 of the exchanges and 2 of the transfers."""
SLOW = ("growth", "loader", "prepare", "threads")
"""They start several processes; in another process as well, since worker processes import the file again."""


def test_every_benchmark_is_run_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(KEYS)


@pytest.mark.parametrize("name", sorted(set(KEYS) - set(SLOW)))
def test_runs_in_this_process(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny"])
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # which two of them set for good
    before, modules = torch.get_num_threads(), set(sys.modules)
    try:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(before)
        for module in set(sys.modules) - modules:
            if module in KEYS:  # `tig` imports `objectives` as a script does: by a name that is too short
                del sys.modules[module]
    result = check(name, capsys.readouterr().out)
    if name == "step":
        over = {key: result[key] for key, most in CEILINGS.items() if result[key] > most}
        assert not over, f"{over}: see where with `python benchmarks/step.py --tiny --places`"


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_runs_in_processes_of_its_own(name: str) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--tiny"], capture_output=True, text=True, encoding="utf-8",
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(name, done.stdout)


def check(name: str, printed: str) -> dict[str, Any]:
    """The last line is one JSON object with the keys of `KEYS` and finite numbers in it."""
    result: dict[str, Any] = json.loads(
        printed.splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{name}: {word}")
    )
    assert result.keys() >= KEYS[name]
    return result
