"""How much memory a step of pre-training needs on a card, counted by a step on tensors without data.

Forward and backward pass run on PyTorch's meta device, whose tensors have shapes and no contents; what is
alive is added up at every operation. Kernels keep what a card's do: under autocast, matrix products and
convolutions read bf16, losses fp32; attention keeps its output and one number a row, dropout one byte each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier_cli.data.batch import Batch, PackedText
from medunifier_cli.objectives.pretraining import PretrainingLoss, active_objectives, build_model
from medunifier_cli.objectives.without_data import META, countable
from medunifier_cli.pretended.functions import Autocast
from medunifier_cli.pretended.shapes import Shapes, tensors_in
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank in one step."""

    weights: int
    """Parameters and buffers, trained and frozen."""
    moments: int
    """AdamW's two moments of every trained parameter."""
    buckets: int
    """Copies of the gradients that several ranks exchange."""
    peak: int
    """The most that is alive at once: all of these, gradients, activations, and what a kernel returns."""


class StepMemory:
    """Counts steps of a recipe on one rank, of any number of pairs.

    Texts are as long as `text.max_tokens` allows, which is the most that can come. Not counted: what CUDA
    and its libraries take for themselves (1 to 2 GiB), work space inside a kernel, fragmentation, and what
    batch norm over several ranks keeps more than over one.

    Args:
        ranks: that share the batch. Features and texts of the others are small, and not counted.
    """

    def __init__(self, recipe: PretrainRecipe, ranks: int = 1) -> None:
        self.recipe, self.ranks = recipe, ranks
        vocabulary = recipe.text.vocabulary
        # the vocabulary of a tokenizer that is yet to be trained is not known: its limit and [DEC]
        with META:
            self.model = build_model(recipe, vocabulary + 1, load=False)
            # as on a GPU, which a recipe of mixed precision is for
            if recipe.train.precision != "no" and recipe.model.vit.frozen:
                self.model.vit.vit.to(torch.bfloat16)
        self._cached: tuple[int, int] | None = None
        if recipe.data.features != LIVE:
            self._cached = self.model.vit.tokens, self.model.vit.width
            self.model.vit.leave_out()
        objectives = countable(active_objectives(recipe))
        self._module = PretrainingLoss(self.model, vocabulary, objectives).train()
        self.weights = _bytes_of(self._module)
        self.gradients = sum(4 * p.numel() for p in self._module.parameters() if p.requires_grad)
        self._known: dict[int, Memory] = {}

    def of(self, micro_batch: int) -> Memory:
        """Count a step of 2 or more pairs on the rank; each number of pairs is counted once."""
        if micro_batch not in self._known:
            alive, half = _Alive(self.weights), HALF.get(self.recipe.train.precision)
            with ExitStack() as stack:
                # the flag alone: it acts on no meta tensor, and `_Card` and the model ask for it
                stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=half is not None))
                stack.enter_context(alive)
                stack.enter_context(_Card(half or torch.float32))
                losses, monitors = self._module(_batch(self.recipe, micro_batch, self._cached))
                losses["total"].backward()
                del losses, monitors
            self._module.zero_grad()
            moments, buckets = 2 * self.gradients, self.gradients if self.ranks > 1 else 0
            peak = alive.peak + moments + buckets
            self._known[micro_batch] = Memory(self.weights, moments, buckets, peak)
        return self._known[micro_batch]


def step_memory(recipe: PretrainRecipe, micro_batch: int, ranks: int = 1) -> Memory:
    """A step of `StepMemory`, where one number of pairs is all that is asked for."""
    return StepMemory(recipe, ranks).of(micro_batch)


def largest_batch(peak: Callable[[int], int], room: int, known: tuple[int, int]) -> int:
    """The largest batch whose step needs no more than `room` bytes; 0 where even two pairs need more.

    Memory is nearly linear in the number of pairs. So the search interpolates between two counts, and bisects
    what is left every second time in case the line bends.

    Args:
        peak: number of pairs -> bytes that a step of them needs.
        known: two numbers of pairs to start from.
    """
    counts = {pairs: peak(pairs) for pairs in known}
    while True:
        low = max((n for n in counts if counts[n] <= room), default=1)
        high = min((n for n in counts if counts[n] > room), default=None)
        if high is not None and high - low == 1:
            return low if low > 1 else 0
        if high is not None and len(counts) % 2:
            guess = (low + high) // 2
        else:
            # around the room, or the nearest two on one side of it
            tried = sorted(counts)
            at = tried.index(high) - 1 if high is not None else len(tried) - 2
            first, second = tried[max(0, at) : max(0, at) + 2]
            each = max(1.0, (counts[second] - counts[first]) / (second - first))
            guess = max(low + 1, first + int((room - counts[first]) // each))
        # between what is known to fit and what is known not to: then every count tells something new
        guess = guess if high is None else min(max(guess, low + 1), high - 1)
        counts[guess] = peak(guess)


def _batch(recipe: PretrainRecipe, micro_batch: int, features: tuple[int, int] | None = None) -> Batch:
    """The largest batch; `features` are tokens and width of cached ones, where the encoder does not run."""
    size, longest = recipe.data.image_size, recipe.text.max_tokens
    number_B = torch.zeros(micro_batch, dtype=torch.int64, device=META)
    return Batch(
        [""] * micro_batch,
        torch.empty((micro_batch, 1, size, size), dtype=torch.uint8, device=META),
        PackedText(
            torch.zeros(micro_batch * longest, dtype=torch.int64, device=META),
            torch.full((micro_batch,), longest),
            torch.zeros(micro_batch * longest, dtype=torch.int64),
        ),
        number_B, number_B, torch.arange(micro_batch),
        None if features is None
        else torch.empty((micro_batch, *features), dtype=torch.bfloat16, device=META),
    )  # fmt: skip


def _bytes_of(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of meta tensors that are alive.

    Args:
        held: bytes that are there before, and stay.
    """

    def __init__(self, held: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = held
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._shapes = Shapes()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        inputs = {id(one.untyped_storage()) for one in tensors_in(args, kwargs) if one.is_meta}
        if func is torch.ops.aten.bincount.default and args[0].is_meta:  # its length depends on the data
            return torch.empty(args[2], dtype=torch.int64, device=META)
        out = self._shapes.call(func, args, kwargs)
        for tensor in tensors_in(out):
            if tensor.is_meta:
                storage = tensor.untyped_storage()
                if id(storage) not in inputs:
                    self._add(storage)
        self.peak = max(self.peak, self.now)
        return out

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps for the way back: its inputs, its output and one number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:3], device=q.device))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors[:3]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Card(Autocast):
    """Autocast, attention and dropout as a card has them, on meta tensors.

    Args:
        half: what matrix products read under autocast.
    """

    def __init__(self, half: torch.dtype) -> None:
        super().__init__("cpu", half)

    def is_here(self, tensor: Tensor) -> bool:
        """Whether a tensor stands for one of the card."""
        return tensor.is_meta

    def attend(self, mixed: bool, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What a fused kernel keeps, whatever the mask."""
        out: Tensor = _Attention.apply(*(map(self.low, (q, k, v)) if mixed else (q, k, v)))
        return out
