"""What a run says of its own speed: rates against a clock, arithmetic against sums by hand and real steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
from medunifier_cli.objectives.without_data import loss_without_data, without_data
from medunifier_cli.run.log import TIMES, without_times
from medunifier_cli.train.loop import fit
from medunifier_cli.train.throughput import pace as pace_module
from medunifier_cli.train.throughput.cards import PEAKS, peak_of
from medunifier_cli.train.throughput.flop import flop_of
from medunifier_cli.train.throughput.pace import Pace, pace_line, peak_gib
from tests.tiny import draw_batch, tiny_recipe
from tests.unit.train.test_loop import OPTIM, SETTINGS, LineStage, new_run

CPU = torch.device("cpu")
aten = torch.ops.aten


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace_module, "time", made)
    return made


class Product:
    """One product with a weight: [4, 8] x [8, 16]."""

    def __init__(self) -> None:
        self.module = nn.Linear(8, 16, bias=False)

    def dry(self, batch: Tensor) -> Tensor:
        total: Tensor = without_data(self.module)(without_data(batch)).sum()
        return total


def test_rate_and_waiting_are_of_the_steps_since_the_last_line(clock: Clock) -> None:
    def slow() -> Iterator[list[Any]]:
        for waits in (2.0, 1.0, 0.5):
            clock.now += waits
            yield []

    pace, read = Pace(Product(), 30, CPU), []
    for number, _ in enumerate(pace.timed(slow())):
        clock.now += 3.0  # the step
        if number != 1:
            read.append(dict(pace.read()))
        assert pace.stepped() == (read[-1] if read else {})
        clock.now += 500.0  # a validation, which is nobody's
    assert [line["seconds"] for line in read] == [3.0, 3.0]
    assert read[0]["samples_per_s"] == 30 / 5
    assert read[0]["waiting"] == 2 / 5
    assert read[1]["samples_per_s"] == pytest.approx(60 / 7.5)
    assert read[1]["waiting"] == pytest.approx(1.5 / 7.5)
    assert "mfu" not in read[0], "no model FLOP utilisation on a CPU"


def test_utilisation_is_what_the_card_would_need_at_its_peak(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two micro-batches of three products, two FLOP for each of 4 x 8 x 16; the input needs no gradient."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**29)
    monkeypatch.setitem(PEAKS, "A100", 1e-12 * 2 * 2 * (2 * 4 * 8 * 16))  # half a second for a step
    pace = Pace(Product(), 8, torch.device("cuda", 0))
    for _ in pace.timed(iter([[torch.zeros(4, 8)] * 2])):
        clock.now += 2.0
        times = pace.read()
    assert times["mfu"] == pytest.approx(0.5)
    assert times["peak_gib"] == 1.5
    assert pace_line(times) == "0% waiting for data  peak 1.50 GiB  MFU 50%"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fails", [True, False])
def test_utilisation_that_cannot_be_known_is_said_once_and_left_out(
    fails: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = "NVIDIA A100" if fails else "Other 9000"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    pace = Pace(LineStage(), 8, torch.device("cuda", 0))
    for _ in pace.timed(iter([[torch.zeros(4)]] * 3)):
        assert "mfu" not in pace.read()
    (line,) = capsys.readouterr().err.splitlines()
    assert "no model FLOP utilisation is logged" in line
    assert ("counted on a GPU alone" if fails else card) in line


def test_of_two_names_the_longer_one_is_the_cards() -> None:
    assert peak_of("NVIDIA H100 PCIe") == 756e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_of("NVIDIA L40S") == 362e12
    assert peak_of("NVIDIA L4") == 121e12
    assert peak_of("Quadro") is None


@pytest.mark.parametrize(("itm", "close"), [(0.0, 1e-6), (1.0, 0.02)])
def test_counting_without_data_gives_what_a_real_step_computes(itm: float, close: float) -> None:
    """On the CPU, whose attention kernels PyTorch's counter does not know by itself. ITM's rows are as many,
    but how they are padded depends on which texts are drawn."""
    recipe = tiny_recipe("train.precision=no", f"objectives.itm={itm}")
    module = PretrainingLoss(build_model(recipe, 41), 40).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    batch = draw_batch(6)

    class Stage:
        def dry(self, batch: Any) -> Tensor:
            return loss_without_data(module, batch)

    counted = flop_of(Stage(), [batch, batch])
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in module.parameters())
    forward = aten._scaled_dot_product_flash_attention_for_cpu
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    known = {
        forward: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(q, k, v),
        # the kernel computes the weights once more, which is no part of a utilisation: 4 products, not 5
        backward: lambda grad, q, k, v, *_, out_shape=None, **__: 2 * sdpa_flop_count(q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        module(batch)[0]["total"].backward()
    assert counted == pytest.approx(2 * counter.get_total_flops(), rel=close)


def test_a_run_logs_its_speed_apart_from_its_numbers(tmp_path: Path, accelerator: Accelerator) -> None:
    started, run = time.monotonic(), new_run(tmp_path / "run")
    fit(LineStage(), run, accelerator, SETTINGS, OPTIM)
    whole = time.monotonic() - started
    lines = [json.loads(text) for text in run.log.read_text().splitlines()]
    for line in lines:
        has = set(TIMES) & line.keys()
        assert has == (
            {"seconds", "samples_per_s", "waiting", "peak_gib"} if line["event"] == "train" else set()
        )
        assert without_times(line).keys() == line.keys() - has
        if has:
            assert line["samples_per_s"] > SETTINGS.global_batch / whole
            assert 0 <= line["waiting"] <= 1
            assert 0.05 < line["peak_gib"] < 100


def test_the_peak_of_a_process_does_not_fall() -> None:
    before = peak_gib(CPU)
    held = torch.ones(2**26)  # 256 MiB
    after = peak_gib(CPU)
    del held
    # Linux adds up what each processor has counted, which may be some pages behind
    assert before - 0.01 < after < before + 0.3
    assert 0.05 < after < peak_gib(CPU) + 0.01
