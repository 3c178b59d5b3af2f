"""How fast a run trains: samples a second, waiting for data, peak memory, and how much of a card it uses."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from medunifier_cli.distributed import world
from medunifier_cli.files import read_text
from medunifier_cli.terminal.say import say
from medunifier_cli.train.throughput.cards import peak_of
from medunifier_cli.train.throughput.flop import Counted, flop_of

GIB = 2**30
STATUS = Path("/proc/self/status")


class Pace:
    """Times of the steps since the last line of the log.

    All of them are this rank's own, those of rank 0 in the log: ranks train in step, so the samples of all in
    the time of one are the rate of all, while a mean over ranks would need an exchange, or, as part of the
    one there is, change the order in which the losses are summed.

    Args:
        stage: counted once, at the first batch on a GPU.
        samples: of a step, over all ranks.
        device: of this rank.
    """

    def __init__(self, stage: Counted, samples: int, device: torch.device) -> None:
        self._stage, self._samples, self._device = stage, samples, device
        self._steps = 0
        self._waited = self._taken = 0.0
        self._asked: float | None = None
        """When the batch of a step that is not counted yet was asked for."""
        self._came = 0.0
        self._at_peak: float | None = None
        """Seconds that a step would take on the card at its peak; None where that is unknown."""
        self._times: dict[str, float] = {}

    def timed(self, batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
        """The same batches; the time until each is there counts as waiting."""
        is_first = True
        while True:
            asked = time.monotonic()
            try:
                micro_batches = next(batches)
            except StopIteration:
                return
            waited = time.monotonic() - asked
            if is_first and world.is_main() and self._device.type == "cuda":
                self._at_peak = self._seconds_at_peak(micro_batches)
            is_first = False
            self._came = time.monotonic()
            self._asked = self._came - waited
            self._waited += waited
            yield micro_batches

    def stepped(self) -> Mapping[str, float]:
        """Count the step, if `read` has not; a validation or checkpoint that follows is no part of any.

        Returns:
            What `read` gave last, or nothing.
        """
        if self._asked is not None:
            self._steps += 1
            self._taken += time.monotonic() - self._asked
            self._asked = None
        return self._times

    def read(self) -> Mapping[str, float]:
        """Numbers of the steps since the last call, this one included, under the names of `run.log.TIMES`.

        To be called where the CPU has waited for the device: a GPU works behind, and the steps that it has
        been given may not be done.
        """
        seconds = time.monotonic() - self._came
        self.stepped()
        taken = max(self._taken, 1e-9)
        self._times = {
            "seconds": round(seconds, 4),
            "samples_per_s": float(f"{self._samples * self._steps / taken:.4g}"),
            "waiting": round(self._waited / taken, 4),
            "peak_gib": round(peak_gib(self._device), 3),
        }
        if self._at_peak is not None:
            self._times["mfu"] = round(self._at_peak * self._steps / taken, 4)
        self._steps, self._waited, self._taken = 0, 0.0, 0.0
        return self._times

    def _seconds_at_peak(self, micro_batches: list[Any]) -> float | None:
        card = torch.cuda.get_device_name(self._device)
        peak = peak_of(card)
        if peak is None:
            say(f"no model FLOP utilisation is logged, as the peak of {card} is not known here")
            return None
        try:
            return flop_of(self._stage, micro_batches) / peak
        except (RuntimeError, NotImplementedError) as error:  # of a head plugin that reads values, for one
            say(f"no model FLOP utilisation is logged, as the model cannot be counted: {error}")
            return None


def pace_line(times: Mapping[str, float]) -> str:
    """What `Pace.read` gave, for the progress line, which has the rate already."""
    parts = [f"{times['waiting']:.0%} waiting for data", f"peak {times['peak_gib']:.2f} GiB"] if times else []
    return "  ".join([*parts, *([f"MFU {times['mfu']:.0%}"] if "mfu" in times else [])])


def peak_gib(device: torch.device) -> float:
    """The most memory so far, in GiB: tensors on a GPU, or all that this process held of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / GIB
    try:
        # not `getrusage`, which on Linux counts the process that started this one
        return int(read_text(STATUS).split("VmHWM:")[1].split()[0]) * 1024 / GIB
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / GIB
