"""Compiled parts: as exact as the model itself, compiled once, and gone where they are not wanted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medunifier_cli.distributed import draws
from medunifier_cli.errors import MuError
from medunifier_cli.model import qformer
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.train import compiling
from medunifier_cli.train.compiling import (
    as_written,
    compiled,
    is_compiled,
    missing,
    regions,
    tell_of_compiler,
)
from medunifier_cli.train.loop import fit
from medunifier_cli.train.stop import Watch
from tests.tiny import DEC, draw_batch, tiny_model
from tests.unit.train.test_loop import OPTIM, POINTS, SETTINGS, Line, LineStage, new_run

BATCHES, SETTLED, PAIRS = 7, 2, 6
DROPOUT = "model.qformer.dropout=0.1"


class Counting:
    """The compiler without its last step: a graph is run as it was read."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: Any, _: Any) -> Any:
        self.graphs += 1

        def run(*inputs: Any) -> Any:
            self.runs += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Graphs are kept by the code of a function: those of another test would count here."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def steps(model: nn.Module, count: int, after: Callable[[], None] = lambda: None) -> list[dict[str, Tensor]]:
    """Losses and gradients of steps without an optimiser, on batches whose texts differ in length."""
    module = PretrainingLoss(model, DEC).train()  # type: ignore[arg-type]
    outcomes = []
    for step in range(count):
        torch.manual_seed(step)  # of dropout
        module.zero_grad()
        losses, _ = module(draw_batch(PAIRS, seed=step), draws.generator(0, draws.REVIVAL, step))
        losses["total"].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        outcomes.append({**{k: v.detach() for k, v in losses.items()}, **gradients})
        after()
    return outcomes


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_losses_and_gradients_are_exact_and_no_graph_is_added_after_the_first_steps(frozen: str) -> None:
    settings = (DROPOUT, f"model.vit.frozen={frozen}")
    plain = steps(tiny_model(*settings, dtype=torch.float32), BATCHES)
    lengths = {tuple(draw_batch(PAIRS, seed=step).text.lengths_B.tolist()) for step in range(BATCHES)}
    assert len(lengths) == BATCHES
    counting, counts = Counting(), list[int]()
    model = tiny_model(*settings, dtype=torch.float32)
    with compiled(model, counting):
        held = steps(model, BATCHES, lambda: counts.append(counting.graphs))
    for expected, found in zip(plain, held, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
    assert counts[0] >= 5, "the tower, both kinds of attention, the feed-forward networks, the decoder"
    assert counts[SETTLED - 1 :] == [counts[-1]] * (BATCHES - SETTLED + 1), counts


def test_in_mixed_precision_it_has_as_many_graphs() -> None:
    model, counting, counts = tiny_model(DROPOUT, dtype=torch.float32), Counting(), list[int]()
    with torch.autocast("cpu", torch.bfloat16):
        plain = steps(model, 4)
        with compiled(model, counting):
            held = steps(model, 4, lambda: counts.append(counting.graphs))
    assert counts[1:] == [counts[1]] * 3
    for expected, found in zip(plain, held, strict=True):
        for name, value in expected.items():
            # a weight is cast in each region, so its gradients add up in fp32
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5, msg=name)


def test_it_works_inside_of_activation_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, counting, counts = tiny_model(DROPOUT, dtype=torch.float32), Counting(), list[int]()
    plain = steps(model, 4)
    pairs, again = qformer.Block.pairs, list[int]()

    def kept_inputs_alone(block: qformer.Block, *given: Any, **more: Any) -> Tensor:
        def call(*values: Any) -> Tensor:
            again.append(counting.graphs)
            return pairs(block, *values, **more)

        result: Tensor = checkpoint(call, *given, use_reentrant=False)
        return result

    monkeypatch.setattr(qformer.Block, "pairs", kept_inputs_alone)
    with compiled(model, counting):
        held = steps(model, 4, lambda: counts.append(counting.graphs))
    assert len(again) == 4 * 2 * len(model.qformer.blocks), "forward, and once more in the backward pass"
    assert counts[1:] == [counts[1]] * 3
    for expected, found in zip(plain, held, strict=True):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_names_pickles_and_copies_of_a_model_do_not_show_it(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    names, images = list(model.state_dict()), pixels(draw_batch(PAIRS).image_B1HW)
    counting = Counting()
    with compiled(model, counting):
        steps(model, 1)
        assert list(model.state_dict()) == names
        graphs = counting.graphs
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            memory = twin.encode_image(images[:3])
            assert torch.equal(memory.query_BQD, model.encode_image(images[:3]).query_BQD)
            assert not any(region._compiled_call_impl for region, _ in regions(twin))
    assert graphs > 0


def test_nothing_is_compiled_in_evaluation_nor_afterwards() -> None:
    model, counting = tiny_model(dtype=torch.float32), Counting()
    images = pixels(draw_batch(PAIRS).image_B1HW)
    with compiled(model, counting):
        with as_written():
            model.encode_image(images)
        assert not counting.graphs
        model.encode_image(images)
        graphs = counting.graphs
        assert graphs
    model.encode_image(images[:2])
    assert counting.graphs == graphs
    assert torch._dynamo.config.optimize_ddp, "as it was"


@pytest.mark.parametrize("wrong", ["of the backend", "a break"])
def test_a_failure_of_the_compiler_is_one_line_that_names_the_key(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backend(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler.\nPlease specify CC.")

    model = tiny_model(dtype=torch.float32)
    if wrong == "a break":
        monkeypatch.setattr(qformer, "halved", lambda x: (x, x) if x.sum() > 0 else (x, x * 1))
    with compiled(model, backend if wrong == "of the backend" else "eager"), pytest.raises(MuError) as raised:
        tell_of_compiler(steps)(model, 1)
    line = str(raised.value)
    assert line.startswith("train.compile: PyTorch cannot compile the model here: ")
    assert line.endswith("`-o train.compile=never` trains without it")
    assert ("RuntimeError: Failed to find C compiler.; " in line) == (wrong == "of the backend")


def test_a_region_that_is_compiled_anew_with_each_batch_ends_the_run() -> None:
    """And is not left to run uncompiled, which would be a warning in the middle of a log."""
    model = tiny_model(dtype=torch.float32)
    block = next(iter(model.vit.vit.blocks))

    def step(number: int) -> None:
        block.norm1.eps = number * 1e-5  # a constant of the graph
        block(torch.zeros(1, 17, 48))

    with compiled(model, "eager"):
        step(1)
        with pytest.raises(
            MuError, match=r"^train\.compile: .*FailOnRecompileLimitHit.*`-o train\.compile=never`"
        ):
            tell_of_compiler(lambda: [step(number) for number in range(2, 99)])()


def test_other_errors_of_a_step_stay_what_they_are() -> None:
    @tell_of_compiler
    def step() -> None:
        raise ValueError("a text")

    with pytest.raises(ValueError, match="a text"):
        step()


@pytest.mark.parametrize(
    ("choice", "deterministic", "device", "expected"),
    [
        ("auto", False, "cpu", False), ("auto", False, "cuda", True), ("auto", True, "cuda", False),
        ("always", False, "cpu", True), ("always", False, "cuda", True),
        ("never", False, "cuda", False), ("never", True, "cuda", False),
    ],
)  # fmt: skip
def test_where_a_run_is_compiled(
    choice: str, deterministic: bool, device: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "missing", lambda _: "")
    assert is_compiled(choice, deterministic, device)[0] == expected
    monkeypatch.setattr(compiling, "missing", lambda _: "there is no gcc")
    if choice == "always":
        with pytest.raises(MuError, match=r"^train\.compile is `always`, but there is no gcc; .*never"):
            is_compiled(choice, deterministic, device)
    else:
        assert not is_compiled(choice, deterministic, device)[0]


def test_always_and_deterministic_contradict_each_other() -> None:
    with pytest.raises(MuError, match=r"train\.deterministic"):
        is_compiled("always", True, "cuda")


def test_what_the_compiler_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CC", raising=False)
    header = tmp_path / "Python.h"
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: None)
    assert missing("cuda") == "the Python package triton is not installed"
    assert "triton" not in missing("cpu"), "the CPU's kernels are C++"
    monkeypatch.setattr(compiling.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert missing("cuda") == "there is no gcc or clang on the PATH, and CC names no other compiler"
    monkeypatch.setenv("CC", "icx")
    assert missing("cuda") == "CC names icx, which is not there"
    compiler = tmp_path / "icx"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert missing("cuda").startswith(f"{header} is missing")
    header.touch()
    assert missing("cuda") == ""
    assert missing("cpu").startswith("there is no g++")


class Wide(Line):
    """The line, after a part that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.part = qformer.FeedForward(POINTS, 2, 0.0)

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        return super().forward(self.part(x), dropout)


class WideStage(LineStage):
    """Notes how often a graph has been run when a validation begins and ends."""

    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self.module, self.counting = Wide(), counting
        self.runs = list[tuple[int, int]]()

    def validate(self, step: int, watch: Watch = iter) -> Mapping[str, float]:
        before = self.counting.runs
        self.module(torch.zeros(POINTS), 0.0)
        self.runs.append((before, self.counting.runs))
        return {"total": 0.0}


def test_the_loop_trains_compiled_and_validates_as_written(tmp_path: Path) -> None:
    run, counting = new_run(tmp_path / "run"), Counting()
    stage = WideStage(counting)
    with compiled(stage.module, counting):
        fit(stage, run, Accelerator(cpu=True), SETTINGS, OPTIM)
    assert stage.runs == [(3, 3), (6, 6)], "after three steps of six, and after all"
    assert counting.graphs == 1
