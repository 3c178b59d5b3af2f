"""Compile parts of a model for training (`train.compile`): which, on which device, and how a failure is told.

Small parts and not the whole model: that has 43 places which PyTorch's compiler cannot read, and lengths of
texts, of which it would make a new program for every batch. Each part is one graph without a break, and
layers share it. Evaluation is never compiled, so that its numbers are those the same weights give elsewhere.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.qformer import Attention, FeedForward
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.model.vqvae.decoder import RectifiedDeconvolution

OFF = "`-o train.compile=never` trains without it"
COMPILER = ("torch._dynamo.", "torch._inductor.", "torch._functorch.", "triton.")
"""Beginnings of the modules whose exceptions are the compiler's."""
Call = TypeVar("Call", bound=Callable[..., Any])


def is_compiled(choice: str, deterministic: bool, device: str) -> tuple[bool, str]:
    """Whether a run on this machine is compiled, and why or why not.

    Args:
        choice: `train.compile`.
        deterministic: `train.deterministic`.
        device: type of the run's device.

    Raises:
        MuError: `always`, and it cannot be.
    """
    obstacle = _fixed_kernels(deterministic) or missing(device)
    if choice == "never":
        return False, "no, as train.compile is `never`"
    if choice == "auto" and device != "cuda":
        return False, "no, as `auto` compiles on a GPU alone"
    if choice == "always" and obstacle:
        raise MuError(
            f"train.compile is `always`, but {obstacle}; `auto` compiles where it can, `never` nowhere"
        )
    return not obstacle, f"no: {obstacle}" if obstacle else "yes, in the first step"


def _fixed_kernels(deterministic: bool) -> str:
    # reductions are laid out for the sizes of the first batch, which is another one in a resumed run
    return "train.deterministic allows no kernels that follow the first batch" if deterministic else ""


def missing(device: str) -> str:
    """What the compiler needs for a type of device and this machine lacks; empty if it is all there."""
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "the Python package triton is not installed"
    # triton compiles C around its kernels, and PyTorch C++ where the kernels run on a CPU
    variable, usual = ("CC", ("gcc", "clang")) if device == "cuda" else ("CXX", ("g++", "clang++"))
    given = os.environ.get(variable)
    if given and shutil.which(given) is None:
        return f"{variable} names {given}, which is not there"
    if not given and not any(map(shutil.which, usual)):
        return f"there is no {' or '.join(usual)} on the PATH, and {variable} names no other compiler"
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return "" if header.is_file() else f"{header} is missing (package python3-dev or python3-devel)"


def regions(module: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """The parts of a model that are compiled, and whether their sizes change from step to step."""
    for part in module.modules():
        if isinstance(part, Attention | FeedForward):
            yield part, True  # rows: with the texts
        elif isinstance(part, RectifiedDeconvolution):
            yield part, False
        elif isinstance(part, ImageEncoder):
            blocks = getattr(part.vit, "blocks", ())  # none where cached features stand in for them
            yield from ((block, False) for block in blocks)


@contextmanager
def compiled(module: nn.Module, backend: str | Callable[..., Any] = "inductor") -> Iterator[None]:
    """Have the regions of a model compiled when they are first called in this block, and not after it.

    Neither names nor types of modules change: checkpoints, pickles and wrappers do not see it.

    Args:
        module: it, or parts of it.
        backend: of `torch.compile`.
    """
    import torch._dynamo

    before = torch._dynamo.config.optimize_ddp
    # it would cut regions where a bucket of gradients ends; buckets are exchanged between regions as it is
    torch._dynamo.config.optimize_ddp = False
    held = list(regions(module))
    for region, varying in held:
        # `fullgraph`: a region that cannot be compiled, or is with each batch, is an error and no warning
        region.compile(fullgraph=True, dynamic=varying or None, backend=backend)
    try:
        yield
    finally:
        torch._dynamo.config.optimize_ddp = before
        for region, _ in held:
            region._compiled_call_impl = None


@contextmanager
def as_written() -> Iterator[None]:
    """No compiled part is used in this block."""
    with torch.compiler.set_stance("force_eager"):
        yield


def tell_of_compiler(call: Call) -> Call:
    """Turn what PyTorch's compiler raises in a call into one line that names the recipe's key."""

    @functools.wraps(call)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except Exception as error:  # the compiler has dozens of types, without a base of their own
            if not _is_of_compiler(error):
                raise
            line = f"train.compile: PyTorch cannot compile the model here: {_words(error)}; {OFF}"
            raise MuError(line) from error

    return told  # type: ignore[return-value]


def _is_of_compiler(error: BaseException) -> bool:
    return any(f"{kind.__module__}.".startswith(COMPILER) for kind in type(error).__mro__)


def _words(error: BaseException) -> str:
    """Type and first line of what the compiler ran into."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return f"{type(inner).__name__}: {lines[0] if lines else 'no message'}"
