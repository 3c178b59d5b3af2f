"""Attention over sequences, as a GPU has it, against the padded grid of a CPU: order, offsets and numbers."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from medunifier_cli.model.attention import sequences
from medunifier_cli.model.attention.masks import Layout
from medunifier_cli.model.attention.sequences import Lengths, Sequences, flash, has_kernel, layout_for
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives.pretraining import PretrainingLoss
from tests.reference.slow_sequences import slow_flash
from tests.tiny import DEC, draw_batch, draw_texts, pack, tiny_model

CPU = torch.device("cpu")
TEXTS = draw_texts(7, seed=2)
IMAGES = 5
IMAGE_M = torch.tensor([3, 0, 3, 1, 4, 3, 0])
"""Image 2 belongs to no pair, and image 3 to three."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Has a CPU compute as a GPU does, with the slow reference in place of the kernel."""
    called = mock.Mock(side_effect=slow_flash)
    monkeypatch.setattr(sequences, "has_kernel", lambda *_: True)
    monkeypatch.setattr(sequences, "flash", called)
    return called


def passes(model: MedUnifier) -> dict[str, Tensor]:
    """The four passes, and the gradients of all weights and of the features."""
    qformer = model.qformer
    model.zero_grad()
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(IMAGES, 17, 48, dtype=torch.float64, generator=generator).requires_grad_()
    memory = qformer.encode_image(image)
    values = {
        "text": qformer.encode_text(pack(TEXTS)),
        "pairs": qformer.fuse(memory, IMAGE_M, pack(TEXTS)),
        "causal": qformer.decode_text(memory, pack(TEXTS[:IMAGES])),
    }
    loss = torch.zeros((), dtype=torch.float64)
    for number, value in enumerate(values.values(), 1):
        weight = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view(value.shape)
        loss = loss + number * (value * weight).sum()
    loss.backward()
    gradients = {name: p.grad for name, p in qformer.named_parameters() if p.grad is not None}
    return {**values, "image": image.grad, **gradients}  # type: ignore[dict-item]


@pytest.mark.parametrize("every", [1, 2])
def test_sequences_give_the_numbers_of_the_grid(every: int, request: pytest.FixtureRequest) -> None:
    model = tiny_model(f"model.qformer.cross_attention_every={every}")
    grid = passes(model)
    kernel = request.getfixturevalue("kernel")
    ours = passes(model)
    crossed = len([block for block in model.qformer.blocks if block.cross is not None])
    assert kernel.call_count == 3 * 3 + crossed, "text, pairs and causal text in each of three layers"
    assert ours.keys() == grid.keys()
    assert len(ours) > 60
    for name, value in ours.items():
        assert bool(value.any()), name
        torch.testing.assert_close(
            value, grid[name], atol=1e-10, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_losses_of_a_step_are_those_of_the_grid(request: pytest.FixtureRequest) -> None:
    module = PretrainingLoss(tiny_model(dtype=torch.float32), DEC)
    batch = draw_batch(6, equal=[(0, 4)])
    grid, _ = module(batch)
    request.getfixturevalue("kernel")
    ours, _ = module(batch)
    for name, loss in grid.items():
        torch.testing.assert_close(ours[name], loss, atol=1e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def starts(lengths: Lengths) -> list[int]:
    assert lengths.start_B1.dtype == torch.int32
    return lengths.start_B1.tolist()


def test_texts_lie_end_to_end() -> None:
    layout = Sequences.of(torch.tensor([3, 2, 4]), CPU)
    assert (starts(layout.whole), layout.whole.longest) == ([0, 3, 5, 9], 4)
    assert (starts(layout.leads), layout.leads.longest) == ([0, 1, 2, 3], 1)
    assert layout.lead_F.tolist() == [0, 3, 5]
    assert layout.text_N.tolist() == list(range(9))
    assert layout.position_N.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3]


def test_keys_of_a_causal_pass_are_queries_and_then_text() -> None:
    layout = Sequences.of(torch.tensor([3, 1]), CPU, after=2)
    assert (starts(layout.texts), layout.texts.longest) == ([0, 3, 4], 3)
    assert (starts(layout.whole), layout.whole.longest) == ([0, 5, 8], 5)
    keys = layout.rows((torch.tensor([[0], [1], [10], [11]]), torch.tensor([[2], [3], [4], [12]])))
    assert keys[:, 0].tolist() == [0, 1, 2, 3, 4, 10, 11, 12]


def test_pairs_of_one_image_are_together_and_come_back_in_their_own_order() -> None:
    layout, plan = Sequences.of_pairs(torch.tensor([2, 0, 2]), 3, torch.tensor([1, 3, 2]), CPU, 2)
    assert plan is layout
    # the pairs in the order of their images: 1 (five rows), 0 (three), 2 (four)
    assert (starts(layout.whole), layout.whole.longest) == ([0, 5, 8, 12], 5)
    assert layout.images is not None
    assert (starts(layout.images), layout.images.longest) == ([0, 2, 2, 6], 4)
    text = torch.tensor([[100], [200], [201], [202], [300], [301]])
    rows = layout.rows(layout.join(torch.arange(6)[:, None], text))
    assert rows[:, 0].tolist() == [0, 1, 200, 201, 202, 2, 3, 100, 4, 5, 300, 301]
    queries, back = layout.split(layout.parts(rows))
    assert (queries[:, 0].tolist(), back.tolist()) == (list(range(6)), text.tolist())
    assert rows[layout.lead_F][:, 0].tolist() == list(range(6))
    assert layout.in_order(queries.view(3, 2, 1)).flatten().tolist() == [2, 3, 0, 1, 4, 5]


def test_moving_rows_has_the_right_gradient() -> None:
    layout, _ = Sequences.of_pairs(IMAGE_M, IMAGES, torch.tensor([len(text) for text in TEXTS]), CPU, 2)
    count = sum(map(len, TEXTS))
    queries = torch.randn(14, 3, dtype=torch.float64, requires_grad=True)
    text = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *parts: layout.rows(parts), (queries, text))
    rows = layout.rows((queries, text)).detach().requires_grad_()
    assert torch.autograd.gradcheck(layout.parts, (rows,))


def test_pytorch_still_has_the_kernel_and_its_gradient() -> None:
    """On tensors without data: the operation is not a public one."""
    q, k = (torch.empty(n, 2, 8, dtype=torch.bfloat16, device="meta", requires_grad=True) for n in (7, 9))
    of = Lengths(torch.empty(3, dtype=torch.int32, device="meta"), 5)
    out = flash(q, k, k, of, of, 0.1, causal=True)
    assert out.shape == q.shape
    out.sum().backward()
    assert (q.grad is not None, k.grad is not None) == (True, True)
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert names[3:10] == [
        "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "autocast", "width", "capability", "expected"),
    [
        ("cuda", torch.bfloat16, 64, (9, 0), Sequences),
        ("cuda", torch.float16, 64, (8, 0), Sequences),
        ("cuda", None, 64, (9, 0), Layout),
        ("cuda", torch.bfloat16, 64, (7, 5), Layout),
        ("cuda", torch.bfloat16, 60, (9, 0), Layout),
        ("cuda", torch.bfloat16, 264, (9, 0), Layout),
        ("cpu", torch.bfloat16, 64, (9, 0), Layout),
    ],
)
def test_the_kernel_is_used_where_it_can_be(
    device: str, autocast: Any, width: int, capability: tuple[int, int], expected: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: autocast is not None)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: autocast or torch.float32)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert layout_for(torch.device(device), width) is expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with bf16, Ampere or newer")
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_a_gpu_gives_the_grids_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    model = tiny_model("model.qformer.width=64", dtype=torch.float32).to(device)
    outcomes = []
    for on in (True, False):
        if not on:
            monkeypatch.setattr(sequences, "has_kernel", lambda *_: False)
        with torch.autocast("cuda", dtype):
            assert layout_for(device, 16) is (Sequences if on else Layout)
            image = torch.randn(IMAGES, 17, 48, generator=torch.Generator().manual_seed(3)).to(device)
            memory = model.qformer.encode_image(image)
            text = type(pack(TEXTS)).of(TEXTS, device)
            few = type(text).of(TEXTS[:IMAGES], device)
            outcomes.append(
                [
                    model.qformer.encode_text(text),
                    model.qformer.fuse(memory, IMAGE_M, text),
                    model.qformer.decode_text(memory, few),
                ]
            )
    for ours, grid in zip(*outcomes, strict=True):
        assert float((ours - grid).float().square().mean().sqrt()) < 1e-3 * float(grid.float().abs().max())


def test_a_cpu_never_has_the_kernel() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert not has_kernel(CPU, 64)
