"""Accelerate is set up as the recipe says, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
)

from medunifier_cli.distributed.group import JOIN_LIMIT
from medunifier_cli.errors import MuError
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.train import accelerator as accelerator_module
from medunifier_cli.train.accelerator import accelerator_of


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_fp16_on_a_cpu_is_one_line(tmp_path: Path) -> None:
    """Accelerate switches it off there, and would train in fp32 without a word."""
    with pytest.raises(
        MuError, match=r"^train\.precision: fp16 needs a GPU.*train\.precision=bf16` or `no`$"
    ):
        accelerator_of(LoopConfig(precision="fp16", tensorboard=False), tmp_path)


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_a_cpu_computes_in_the_precision_of_the_recipe(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    settings = LoopConfig(precision=precision, tensorboard=False)  # type: ignore[arg-type]
    accelerator = accelerator_of(settings, tmp_path)
    with accelerator.autocast():
        assert (torch.eye(2) @ torch.eye(2)).dtype == dtype
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("timeout", "expected"), [(5, JOIN_LIMIT), (7200, 7200 + accelerator_module.MARGIN)])
def test_torchs_time_out_leaves_time_for_ours_and_for_slow_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: int, expected: float
) -> None:
    handlers: list[Any] = []

    def record(kwargs_handlers: list[Any], **_: object) -> Accelerator:
        handlers.extend(kwargs_handlers)
        return Accelerator(cpu=True)

    monkeypatch.setattr(accelerator_module, "Accelerator", record)
    accelerator_of(LoopConfig(precision="no", tensorboard=False, timeout=timeout), tmp_path)
    (limit,) = (handler.timeout for handler in handlers if isinstance(handler, InitProcessGroupKwargs))
    assert limit.total_seconds() == expected


def test_the_number_of_threads_is_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate sets its own for several processes on a CPU, where OMP_NUM_THREADS is unset."""

    def with_threads_of_its_own(**_: object) -> Accelerator:
        torch.set_num_threads(1)
        return Accelerator(cpu=True)

    monkeypatch.setattr(accelerator_module, "Accelerator", with_threads_of_its_own)
    before = torch.get_num_threads()
    try:
        accelerator_of(LoopConfig(precision="no", tensorboard=False, threads=2), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def handed_over(
    settings: LoopConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> DistributedDataParallelKwargs:
    """What Accelerate is told of DistributedDataParallel."""
    handlers: list[Any] = []

    def record(kwargs_handlers: list[Any], **_: object) -> Accelerator:
        handlers.extend(kwargs_handlers)
        return Accelerator(cpu=True)

    monkeypatch.setattr(accelerator_module, "Accelerator", record)
    accelerator_of(settings, folder)
    (told,) = (handler for handler in handlers if isinstance(handler, DistributedDataParallelKwargs))
    return told


@pytest.mark.parametrize("gpu", [True, False])
def test_gradients_live_in_their_buckets_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    """That both ways give the same gradients is in `tests/parity/test_exchanges`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    told = handed_over(LoopConfig(precision="no", tensorboard=False), tmp_path, monkeypatch)
    assert told.gradient_as_bucket_view is gpu
    assert told.comm_hook is DDPCommunicationHookType.NO


def test_gradients_are_exchanged_in_the_precision_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LoopConfig(precision="no", gradients="bf16", tensorboard=False)
    assert handed_over(settings, tmp_path, monkeypatch).comm_hook is DDPCommunicationHookType.BF16


@pytest.mark.parametrize(
    ("variable", "value"),
    [("", ""), ("PYTORCH_CUDA_ALLOC_CONF", "backend:native"), ("PYTORCH_ALLOC_CONF", "backend:native")],
)
def test_a_gpus_memory_grows_in_segments_unless_the_user_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        handed_over(LoopConfig(precision="no", tensorboard=False), tmp_path, monkeypatch)
        given = {name: os.environ[name] for name in names if name in os.environ}
        grown = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} if gpu else {}
        assert given == ({variable: value} if variable else grown)
