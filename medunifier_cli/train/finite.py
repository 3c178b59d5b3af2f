"""Skip steps whose loss or gradients are not finite: decided and counted on the device, and never saved.

A batch in a million may overflow, and a rate that is too high makes everything NaN. The first costs one step
here, and the second must not reach a checkpoint. Nothing makes the CPU wait for the GPU: a step that is
skipped runs the same kernels, which are told by a flag on the device to leave everything as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medunifier_cli.distributed import world
from medunifier_cli.errors import CheckpointError
from medunifier_cli.parsing import checked

OVERFLOWS = 32
"""Overflows in a row that fp16's loss scaling may take to find its factor: it starts at 2^16, grows to little
more, and each overflow halves it. More are no matter of the factor, and count as skipped steps."""


@dataclass(frozen=True)
class Counts:
    """Steps without effect since the run began, as a checkpoint keeps them."""

    skipped: int = 0
    """Steps whose loss or gradients were not finite."""
    in_a_row: int = 0
    """Of these, the last ones; 0 after a step that changed weights."""
    overflows: int = 0
    """Steps of fp16 whose scaled gradients overflowed; the loss scale is halved each time, as intended."""
    overflows_in_a_row: int = 0
    """Of these, the last ones."""

    def shown(self) -> dict[str, float]:
        """For the log: what there is to tell, so that healthy runs have the same lines as ever."""
        numbers = {"skipped_steps": self.skipped, "overflows": self.overflows}
        return {name: float(number) for name, number in numbers.items() if number}


class Skips:
    """The steps of one run that are skipped.

    In each step: `begin`, then a backward pass of each loss times `factor`, then `decide`, which says whether
    the optimiser may change anything, and after it `end`.

    Args:
        module: what is trained, not wrapped for several ranks.
        device: where it is.
        limit: steps in a row after which no further one has an effect, until the loop notices and ends.
        scaled: losses are scaled (fp16), and the scaler skips steps of its own.
        counts: those of the checkpoint that the run resumes from.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, limit: int, scaled: bool, counts: Counts
    ) -> None:
        self.limit, self.scaled = limit, scaled
        self._places = list(changed_in_forward(module))
        self._before = [tensor.clone() for tensor in self._live()]
        self._counts_4 = torch.tensor(list(asdict(counts).values()), dtype=torch.int64, device=device)
        self._loss_is_finite = self._is_skipped = torch.ones((), dtype=torch.bool, device=device)

    def begin(self) -> None:
        """Keep what the forward pass changes: a loss that is not finite shows only after it."""
        if self._places:
            torch._foreach_copy_(self._before, self._live())
        self._loss_is_finite = torch.ones_like(self._loss_is_finite)

    def factor(self, total: Tensor) -> Tensor:
        """1, by which a loss stays what it is; NaN for a loss that is not finite, and beyond the limit.

        As a factor it reaches every gradient, and with them all ranks, without an exchange of its own: a rank
        alone must not skip, and a finite gradient of an infinite loss means nothing.
        """
        is_finite = torch.isfinite(total.detach())
        self._loss_is_finite = self._loss_is_finite & is_finite
        return torch.where(is_finite & (self._counts_4[1] < self.limit), 1.0, torch.nan)

    def decide(self, grad_norm: Tensor) -> Tensor:
        """Count the step, and say whether it is skipped.

        Args:
            grad_norm: over all gradients, which are those of all ranks by now.

        Returns:
            fp32 scalar, 1 for a step that is skipped, as AdamW takes it for `found_inf`.
        """
        bad = ~torch.isfinite(grad_norm.to(self._counts_4.device))
        overflow = torch.zeros_like(bad)
        if self.scaled:
            # each rank knows its own loss alone; without scaling it does not matter whose it was
            losses = world.all_sum((~self._loss_is_finite).float())
            overflow = bad & (losses == 0) & (self._counts_4[3] < OVERFLOWS)
        skipped = bad & ~overflow
        self._counts_4 += torch.stack([skipped, skipped, overflow, overflow])
        self._counts_4[1::2] *= bad
        self._is_skipped = bad
        return bad.float()

    def end(self) -> None:
        """After the optimiser's step: give back what the forward pass of a skipped one has changed."""
        for live, before in zip(self._live(), self._before, strict=True):
            torch.where(self._is_skipped, before, live, out=live)

    def read(self) -> Counts:
        """The counts; the CPU waits for the device here, so not in every step."""
        return Counts(*self._counts_4.tolist())

    def _live(self) -> list[Tensor]:
        # looked up each time, as a head of somebody else's may put another tensor in the place of its buffer
        return [getattr(part, name).detach() for part, name in self._places]


def changed_in_forward(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Where running statistics, codebooks and whatever else is that a forward pass in training changes,
    without gradient: (part of the module, name of its tensor).

    These are the buffers that a checkpoint holds, and the parameters that a part names in
    `changed_in_forward`: a codebook's dead codes are revived in place.
    """
    kept = module.state_dict().keys()
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, _ in part.named_buffers(recurse=False):
            if prefix + name in kept:  # the others are constants
                yield part, name
        for name in getattr(part, "changed_in_forward", ()):
            if name in part._parameters:
                yield part, name


def not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Names of the tensors with a NaN or an infinity, as `file: name`; for weights, buffers and moments.

    Args:
        tensors: those of a checkpoint: file -> name -> tensor.
    """
    names, flags = [], []
    for file, by_name in tensors.items():
        for name, tensor in by_name.items():
            if tensor.is_floating_point() and tensor.numel():
                names.append(f"{file}: {name}")
                # the largest magnitude, of which a NaN makes a NaN: one pass, and no second tensor as large
                flags.append(torch.linalg.vector_norm(tensor.detach(), torch.inf).isfinite())
    # one copy for each device, of which there may be two: the best weights of a run lie on the CPU
    finite: dict[str, bool] = {}
    for device in {flag.device for flag in flags}:
        here = [(name, flag) for name, flag in zip(names, flags, strict=True) if flag.device == device]
        values = torch.stack([flag for _, flag in here]).tolist()
        finite.update(zip((name for name, _ in here), values, strict=True))
    return [name for name in names if not finite[name]]


def counts_of(facts: Mapping[str, Any], shown: str) -> Counts:
    """The counts that a checkpoint's facts keep; an older version kept none.

    Raises:
        CheckpointError: they are something else; `shown` names the run.
    """
    return checked(facts.get("skips", {}), Counts, f"{shown}: counts of skipped steps", CheckpointError)
