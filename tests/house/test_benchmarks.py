"""Every benchmark runs, on tiny sizes, and ends with one JSON line of explained keys, those that others read
among them."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks import gpu, run
from benchmarks.page.meaning import MEANINGS, meaning_of

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
KEYS = {
    "deterministic": {"ratio", "device", "repeats_bit_for_bit"},
    "decoding": {"ratio", "same_texts", "images_per_second", "threads"},
    "features": {
        "ratio", "processor_ratio", "pairs_per_second_live", "pairs_per_second_cached",
        "largest_difference_of_loss", "bytes_per_sample", "read_samples_per_second", "read_mb_per_second",
    },
    "gpu": {"device", "failed", *(key for keys in gpu.OTHERS.values() for key in keys),
            *(f"{rate}_1_{kind}" for rate in gpu.RATES for kind in gpu.STEPS)},
    "growth": {"sizes", *(f"{part}_{name}" for part in ("retrieval", "embedding", "copies", "fid")
                          for name in ("mib", "cpu_seconds"))},
    "loader": {"share_of_decode", "share_1", "share_2", "processor_share_1", "growth_mib", "small_samples",
               "decode_images_per_cpu_s"},
    "objectives": {"ratio", "flop_ratio", "ratio_alternate", "median_s", "peak_mib", "largest_difference"},
    "prepare": {"ratio_1", "ratio_grey_1", "mean_difference", "kills", "identical_after_kills", "images"},
    "ranking": {"ratio", "largest_difference", "large_peak_mib", "large_within_2_gib"},
    "sampling": {
        "ratio_batch8", "ratio_batch32", "over_one_forward", "samples_per_second_batch32",
        "masked_over_pixelsnail",
    },
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
    "transfers_4_live": 16, "launches_1_live": 1460, "launches_4_live": 1665, "collectives_4_live": 51,
}  # fmt: skip
"""Of `step --tiny`: where no GPU is at hand, nothing else would notice a step that waits for one. The norm of
features and the revival of dead codes in `full.yaml` take 6 of the exchanges and 2 of the transfers, and the
norms of the adapters' bottlenecks 24 of the exchanges."""
SLOW = ("gpu", "growth", "loader", "prepare", "threads")
"""They start several processes; in another process as well, since worker processes import the file again."""


ON_CPU = ("deterministic", "gpu")
"""What they measure needs a GPU; with `--device cpu` they only run."""


def words(name: str, *more: str) -> list[str]:
    """The command line of a benchmark on tiny sizes."""
    return [f"{name}.py", "--tiny", *(("--device", "cpu") if name in ON_CPU else ()), *more]


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps the precision of the first one that a process makes."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_every_benchmark_is_run_here_and_has_a_section_of_the_page() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - {"run"} == set(KEYS) == set(run.BENCHMARKS)
    assert set(MEANINGS) == set(KEYS)


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize("name", sorted(set(KEYS) - set(SLOW)))
def test_runs_in_this_process(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", words(name))
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
        [sys.executable, FOLDER / f"{name}.py", *words(name)[1:]], capture_output=True, text=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    check(name, done.stdout)


def check(name: str, printed: str) -> dict[str, Any]:
    """The last line is one JSON object with the keys of `KEYS` and finite numbers in it."""
    result: dict[str, Any] = json.loads(
        printed.splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{name}: {word}")
    )
    assert result.keys() >= KEYS[name]
    assert [key for key in result if key != "benchmark" and not meaning_of(name, key)] == []
    return result


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    "section",
    # what a C++ compiler is given takes longer than all of the others
    [*(pytest.param(name, marks=pytest.mark.slow if name == "compiled" else ()) for name in gpu.STEPS),
     "parity", "parts", "sampling"],
)  # fmt: skip
def test_sections_of_the_gpu_benchmark_run_on_a_cpu(
    section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but `resume`, which starts processes and is among the slow ones."""
    monkeypatch.setattr(sys, "argv", words("gpu", "--section", section))
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before, modules = torch.get_num_threads(), set(sys.modules)
    try:
        gpu.main()
    finally:
        torch.set_num_threads(before)
        for module in set(sys.modules) - modules:
            if module in KEYS or module.split(".")[0] == "card":
                del sys.modules[module]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.keys() == set(gpu.keys_of(section, 1))
    if section == "parity":
        assert (result["loss_fp32"], result["gradient_fp32"]) == (0.0, 0.0), "the CPU differs from itself"
        assert result["within_bf16"]
        assert result["loss_bf16"] > 0


def test_gpu_benchmark_ends_within_eight_minutes() -> None:
    assert gpu.WHOLE < 480
    assert sum(limit for *_, limit in gpu.plan(1, [])) <= gpu.WHOLE, "one card gets through all sections"
    assert [plan[:2] for plan in gpu.plan(4, ["live", "resume"])] == [("live", 1), ("live", 4), ("resume", 4)]


def test_a_section_that_fails_or_hangs_leaves_the_others_their_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", words("gpu", "--only", "parity", "resume", "sampling"))
    options = gpu.arguments()
    assert gpu.run("sampling", 1, 0.05, options) == "not done within 0 s"
    real = gpu.run

    def one(section: str, *more: Any) -> dict[str, Any] | str:
        if section == "parity":
            return dict.fromkeys(gpu.keys_of(section, 1), 0.5)
        return "ended with 1" if section == "resume" else real(section, more[0], 0.05, options)

    monkeypatch.setattr(gpu, "run", one)
    result = gpu.all_sections(1, options)
    assert result["failed"] == {"resume_1": "ended with 1", "sampling_1": "not done within 0 s"}
    assert {result[key] for key in gpu.keys_of("parity", 1)} == {0.5}
    assert {result[key] for part in ("resume", "sampling") for key in gpu.keys_of(part, 1)} == {None}


def test_without_a_gpu_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    told, last = capsys.readouterr().out.splitlines()
    assert told.startswith("no GPU is there")
    assert json.loads(last) == {"benchmark": "gpu", "device": None}
