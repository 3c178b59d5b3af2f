"""How much memory a step of pre-training needs on a card, counted by a step on tensors without data.

Forward and backward pass run on PyTorch's meta device, whose tensors have shapes and no contents; what is
alive is added up at every operation. Kernels keep what a card's do: under autocast, matrix products and
convolutions read bf16, losses fp32; attention keeps its output and one number a row, dropout one byte each.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from medunifier_cli.data.batch import Batch, PackedText
from medunifier_cli.objectives.itm import ImageTextMatching
from medunifier_cli.objectives.pretraining import PretrainingLoss, active_objectives, build_model
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe

META = torch.device("meta")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCTS = {
    F.linear, F.conv2d, F.conv_transpose2d, F.conv3d, torch.matmul, torch.mm, torch.bmm, torch.addmm,
    torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__,
}  # fmt: skip
"""Functions that read half precision under autocast."""
WIDE = {
    F.layer_norm, F.group_norm, F.cross_entropy, F.mse_loss, F.normalize, torch.softmax, F.softmax,
    torch.log_softmax, F.log_softmax, torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.cumsum,
}  # fmt: skip
"""Functions that read fp32 under autocast."""


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


def step_memory(recipe: PretrainRecipe, micro_batch: int, ranks: int = 1) -> Memory:
    """Count a step of the recipe on one rank.

    Texts are as long as `text.max_tokens` allows, which is the most that can come. Not counted: what CUDA
    and its libraries take for themselves (1 to 2 GiB), work space inside a kernel, fragmentation, and what
    batch norm over several ranks keeps more than over one.

    Args:
        micro_batch: pairs of a forward pass on the rank, 2 or more.
        ranks: that share the batch. Features and texts of the others are small, and not counted.
    """
    vocabulary = recipe.text.vocabulary
    # the vocabulary of a tokenizer that is yet to be trained is not known: its limit and [DEC]
    with META:
        model = build_model(recipe, vocabulary + 1, load=False)
        # as on a GPU, which a recipe of mixed precision is for
        if recipe.train.precision != "no" and recipe.model.vit.frozen:
            model.vit.vit.to(torch.bfloat16)
    cached = recipe.data.features != LIVE
    tokens_and_width = (model.vit.tokens, model.vit.width) if cached else None
    if cached:
        model.vit.leave_out()
    objectives = [
        _AnyNegatives() if objective.name == "itm" else objective for objective in active_objectives(recipe)
    ]
    module = PretrainingLoss(model, vocabulary, objectives).train()
    weights = _bytes_of(module)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    alive = _Alive(weights)
    half = HALF.get(recipe.train.precision)
    with ExitStack() as stack:
        # the flag alone: it acts on no meta tensor, and `_Card` and the model ask for it
        stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=half is not None))
        stack.enter_context(alive)
        stack.enter_context(_Card(half or torch.float32))
        losses, monitors = module(_batch(recipe, micro_batch, tokens_and_width))
        losses["total"].backward()
        del losses, monitors
    gradients = sum(4 * parameter.numel() for parameter in trained)
    moments, buckets = 2 * gradients, gradients if ranks > 1 else 0
    return Memory(weights, moments, buckets, alive.peak + moments + buckets)


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


class _AnyNegatives(ImageTextMatching):
    """ITM with negatives drawn at random: those of the similarity would need its values."""

    def draw(self, weights_2BG: Tensor, positions: Sequence[int], seed: int) -> Tensor:
        """For each of B pairs another one, twice."""
        pairs = len(positions)
        steps_2B = torch.randint(1, max(2, pairs), (2, pairs), generator=torch.Generator().manual_seed(0))
        return (torch.arange(pairs) + steps_2B) % pairs


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages of meta tensors that are alive.

    Args:
        held: bytes that are there before, and stay.
    """

    def __init__(self, held: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = held
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        inputs = {
            id(one.untyped_storage())
            for one in tree_flatten((args, kwargs))[0]
            if isinstance(one, Tensor) and one.is_meta
        }
        kwargs = dict(kwargs or {})
        if func is torch.ops.aten.bincount.default and args[0].is_meta:  # its length depends on the data
            return torch.empty(args[2], dtype=torch.int64, device=META)
        out = func(*args, **kwargs)
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor) and tensor.is_meta:
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


class _Card(TorchFunctionMode):
    """Autocast, attention and dropout as a card has them.

    Args:
        half: what matrix products read under autocast.
    """

    def __init__(self, half: torch.dtype) -> None:
        super().__init__()
        self.half = half
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        auto = torch.is_autocast_enabled("cpu")
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            return _Attention.apply(*(tree_map(self._low, args[:3]) if auto else args[:3]))
        if func is F.dropout and args[0].is_meta:
            return _dropout(*args, **kwargs)
        if auto and func in PRODUCTS:
            return func(*tree_map(self._low, args), **tree_map(self._low, kwargs))
        if auto and func in WIDE:
            return func(*tree_map(_wide, args), **tree_map(_wide, kwargs))
        return func(*args, **kwargs)

    def _low(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_meta or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.half)
        # a weight is cast once, and kept until the end of the forward pass
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(self.half)
        return self._cast[id(value)]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    dropped: Tensor = torch.native_dropout(x, p, True)[0] if training and p else x
    return dropped


def _wide(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
