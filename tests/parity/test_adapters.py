"""The adapters in all their forms against plain torch.nn, a position at a time; their weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medunifier_cli.model.vqvae.adapters import BottomAdapter, TopAdapter
from medunifier_cli.recipe.schema import GeneratorConfig
from tests.reference.plain_generator import sinusoid
from tests.tiny import scatter, tiny_model, tiny_recipe

QUERIES, WIDTH, PATCH_WIDTH, TOP, GRID, CODE, INNER = 8, 10, 14, 4, 6, 12, 5
FORMS = list(
    itertools.product(
        ("linear-relu", "linear-relu-linear"), ("learned", "nearest"), ("pre-activation", "bottleneck")
    )
)
AUTHORS = ("linear-relu-linear", "nearest", "bottleneck")
EARLIER = ("linear-relu", "learned", "pre-activation")
"""The default before `AUTHORS`."""
CLOSE = {"atol": 1e-6, "rtol": 1e-5}
"""The positional encoding is a table in fp32."""

Weights = dict[str, Tensor]


def generator(form: tuple[str, str, str], **changes: Any) -> GeneratorConfig:
    """A small generator in one of the forms."""
    nonlinear, upsample, residual = form
    small = GeneratorConfig(code_width=CODE, residual_width=INNER, residual_layers=2)
    return replace(
        small, nonlinear=nonlinear, upsample=upsample, residual=residual, **changes  # type: ignore[arg-type]
    )  # fmt: skip


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loaded(module: nn.Module, weights: Weights, prefix: str) -> nn.Module:
    """A plain module with the weights of that name; all that it has, and all that there are."""
    module = module.double().train()
    of_name = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    module.load_state_dict(of_name)
    return module


def nonlinear(weights: Weights, x_BLD: Tensor, form: str, inner: int, height: int, columns: int) -> Tensor:
    """Every position through nn.Linear layers of its own call, then Wang and Liu's table added."""
    hidden = inner if form == "linear-relu-linear" else CODE
    first = loaded(nn.Linear(x_BLD.shape[2], hidden), weights, "nonlinear.linear.")
    last = (
        loaded(nn.Linear(hidden, CODE), weights, "nonlinear.out.")
        if form == "linear-relu-linear"
        else nn.Identity()
    )
    where = sinusoid(CODE, height, columns).double()
    maps = torch.zeros(len(x_BLD), CODE, height, columns, dtype=torch.float64)
    for y, x in itertools.product(range(height), range(columns)):
        maps[:, :, y, x] = last(nn.ReLU()(first(x_BLD[:, y * columns + x]))) + where[:, y, x]
    return maps


def residual(weights: Weights, x_BCHW: Tensor, form: str, norm: str = "batch") -> Tensor:
    """VQ-VAE-2's layers, or He et al.'s bottlenecks written with PyTorch's norms."""
    for layer in range(2):
        if form == "pre-activation":
            block = nn.Sequential(
                nn.ReLU(), nn.Conv2d(CODE, INNER, 3, padding=1), nn.ReLU(), nn.Conv2d(INNER, CODE, 1)
            )
            x_BCHW = x_BCHW + loaded(block, weights, f"residual.layers.{layer}.")(x_BCHW)
            continue
        inner, outer = (
            (nn.BatchNorm2d(INNER), nn.BatchNorm2d(CODE))
            if norm == "batch"
            else (nn.GroupNorm(1, INNER), nn.GroupNorm(math.gcd(CODE, 32), CODE))
        )
        block = nn.Sequential(
            nn.Conv2d(CODE, INNER, 1, bias=False), inner, nn.ReLU(),
            nn.Conv2d(INNER, INNER, 3, padding=1, bias=False), type(inner)(*_sizes(inner)), nn.ReLU(),
            nn.Conv2d(INNER, CODE, 1, bias=False), outer,
        )  # fmt: skip
        x_BCHW = torch.relu(loaded(block, weights, f"residual.layers.{layer}.")(x_BCHW) + x_BCHW)
    return x_BCHW


def _sizes(norm: nn.Module) -> tuple[int, ...]:
    return (1, INNER) if isinstance(norm, nn.GroupNorm) else (INNER,)


def plain_top(weights: Weights, f_q: Tensor, form: tuple[str, str, str], norm: str = "batch") -> Tensor:
    rows = QUERIES // TOP
    x = nonlinear(weights, f_q, form[0], 2 * CODE, rows, TOP)
    if form[1] == "nearest":
        # row y of the square is row floor(y * rows / T) of the map
        x = torch.stack([x[:, :, y * rows // TOP] for y in range(TOP)], dim=2)
    else:
        x = loaded(nn.ConvTranspose2d(CODE, CODE, (4, 3), (2, 1), (1, 1)), weights, "stretch.")(x)
    return residual(weights, x, form[2], norm)


def plain_bottom(
    weights: Weights, f_local: Tensor, f_t_cls: Tensor, form: tuple[str, str, str], norm: str = "batch"
) -> Tensor:
    both = torch.stack([torch.cat([f_local[:, i], f_t_cls], dim=1) for i in range(GRID**2)], dim=1)
    return residual(weights, nonlinear(weights, both, form[0], CODE, GRID, GRID), form[2], norm)


def compare(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, plain, **CLOSE)  # type: ignore[arg-type]
    weigh = rand(*ours.shape, seed=9)
    gradients = torch.autograd.grad((ours * weigh).sum(), inputs)
    expected = torch.autograd.grad((plain * weigh).sum(), inputs)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)  # type: ignore[arg-type]
        assert bool(one.any())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("form", FORMS, ids="/".join)
def test_both_adapters_equal_plain_layers(form: tuple[str, str, str], norm: str) -> None:
    torch.manual_seed(0)
    recipe = generator(form, norm=norm)
    top = TopAdapter(QUERIES, WIDTH, recipe, TOP).double().train()
    bottom = BottomAdapter(PATCH_WIDTH + WIDTH, recipe, GRID).double().train()
    for module in (top, bottom):
        scatter(module)
    # the plain modules load weights before a forward pass has moved the running means
    f_q, f_local, f_t = rand(3, QUERIES, WIDTH), rand(3, GRID**2, PATCH_WIDTH), rand(3, WIDTH, seed=1)
    for x in (f_q, f_local, f_t):
        x.requires_grad_()
    plain = plain_top(dict(top.state_dict()), f_q, form, norm)
    compare(top(f_q), plain, [f_q])
    plain = plain_bottom(dict(bottom.state_dict()), f_local, f_t, form, norm)
    compare(bottom(f_local, f_t), plain, [f_local, f_t])


def test_the_weights_of_earlier_runs_keep_their_names() -> None:
    names = {f"{part}.{name}" for part, adapter in adapters(EARLIER) for name in adapter.state_dict()}
    layers = {f"residual.layers.{layer}.{i}" for layer in (0, 1) for i in (1, 3)}
    ours = {"nonlinear.linear", *layers}
    assert names == {
        f"{part}.{layer}.{kind}"
        for part, of_part in (("adapt_top", ours | {"stretch"}), ("adapt_bottom", ours))
        for layer in of_part
        for kind in ("weight", "bias")
    }


def adapters(form: tuple[str, str, str] = AUTHORS) -> list[tuple[str, nn.Module]]:
    keys = ("nonlinear", "upsample", "residual")
    model = tiny_model(*(f"model.generator.{key}={value}" for key, value in zip(keys, form, strict=True)))
    return [("adapt_top", model.generator.adapt_top), ("adapt_bottom", model.generator.adapt_bottom)]


def test_sizes_of_the_authors_form_at_the_papers_sizes() -> None:
    """Linear layers of 768 -> 1536 -> 768 and 1408 + 768 -> 768 -> 768; bottlenecks of 384."""
    recipe = replace(
        tiny_recipe().model.generator, code_width=768, residual_width=384, residual_layers=3,
        nonlinear=AUTHORS[0], upsample=AUTHORS[1], residual=AUTHORS[2],  # type: ignore[arg-type]
    )  # fmt: skip
    with torch.device("meta"):
        top, bottom = TopAdapter(32, 768, recipe, 8), BottomAdapter(1408 + 768, recipe, 16)
    layer = [(384, 768, 1, 1), (384, 384, 3, 3), (768, 384, 1, 1)]
    expected = {
        top: [(1536, 768), (768, 1536), *3 * layer],
        bottom: [(768, 2176), (768, 768), *3 * layer],
    }
    for adapter, shapes in expected.items():
        assert [tuple(p.shape) for p in adapter.parameters() if p.dim() > 1] == shapes


@pytest.mark.parametrize("form", [FORMS[0], AUTHORS], ids="/".join)
def test_content_is_as_strong_as_the_positions_at_the_start(form: tuple[str, str, str]) -> None:
    """With PyTorch's default weights, positions would outweigh what is in the image."""
    torch.manual_seed(0)
    recipe = replace(generator(form), code_width=64)
    layer = TopAdapter(32, 128, recipe, 8).nonlinear
    features = torch.randn(64, 32, 128)
    content = (layer(features) - layer.where).detach()
    assert 0.6 < float(content.square().mean().sqrt()) < 1.4
    assert float(layer.where.square().mean().sqrt()) == pytest.approx(0.5**0.5, rel=1e-3)


def test_an_unknown_form_is_refused_with_those_there_are() -> None:
    from medunifier_cli.errors import MuError

    with pytest.raises(MuError, match=r"residual.*pre-activation.*bottleneck"):
        tiny_recipe("model.generator.residual=resnet")
