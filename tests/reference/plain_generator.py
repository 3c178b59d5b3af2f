"""Text-grounded image generation (paper, section 3.4 and appendices 1 and 2), step by step.

Functions of plain weights (names of our state dict, without `generator.`); quantisation loops over positions
and codes. Batch normalisation is written out, with the statistics of the batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH_NORM_EPS = 1e-5


class PlainMap(NamedTuple):
    """A level: output of the adapter, indices of the nearest codes, and the codes with gradient."""

    z_e: Tensor
    code: Tensor
    e: Tensor


def sinusoid(channels: int, height: int, width: int) -> Tensor:
    """Wang and Liu 2019: first half of the channels for the row, second for the column, sine and cosine in
    turn, wavelengths from 2 pi to 10000 * 2 pi."""
    half = channels // 2
    table = torch.zeros(channels, height, width)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                place, i, size = (y, c, half) if c < half else (x, c - half, channels - half)
                angle = place / 10000 ** (2 * (i // 2) / size)
                table[c, y, x] = math.sin(angle) if i % 2 == 0 else math.cos(angle)
    return table


def residual(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Each layer: ReLU, 3x3, ReLU, 1x1, added to its input; weights of its own."""
    layer = 0
    while f"{name}.layers.{layer}.1.weight" in w:
        part = f"{name}.layers.{layer}"
        y = F.conv2d(F.relu(x), w[f"{part}.1.weight"], w[f"{part}.1.bias"], padding=1)
        x = x + F.conv2d(F.relu(y), w[f"{part}.3.weight"], w[f"{part}.3.bias"])
        layer += 1
    assert layer
    return x


def batch_norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    scale, shift = w[f"{name}.weight"][:, None, None], w[f"{name}.bias"][:, None, None]
    return (x - mean) / torch.sqrt(variance + BATCH_NORM_EPS) * scale + shift


def deconvolution(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """2x: transposed convolution, ReLU, then the norm (paper's order)."""
    x = F.conv_transpose2d(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], stride=2, padding=1)
    return batch_norm(w, f"{name}.2", F.relu(x))


def quantise(z_e: Tensor, codes: Tensor) -> PlainMap:
    """Nearest code of every position by the Euclidean distance."""
    batch, _, height, width = z_e.shape
    code = torch.empty(batch, height, width, dtype=torch.int64)
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                distances = [
                    ((z_e[b, :, y, x].detach() - e) ** 2).sum().sqrt().item() for e in codes.detach()
                ]
                code[b, y, x] = distances.index(min(distances))
    return PlainMap(z_e, code, codes[code].permute(0, 3, 1, 2))


def straight_through(level: PlainMap) -> Tensor:
    """z_q: the codes going forward; going backward z_e, as if nothing had been quantised."""
    return level.z_e + (level.e - level.z_e).detach()


def generate(
    w: Mapping[str, Tensor], f_q: Tensor, f_local: Tensor, f_t_cls: Tensor, image_size: int
) -> tuple[Tensor, PlainMap, PlainMap]:
    """Equations (18) to (22): image, top, bottom."""
    batch, queries, _ = f_q.shape
    grid = math.isqrt(f_local.shape[1])
    top_edge = grid // 2
    rows = queries // top_edge

    x = F.relu(F.linear(f_q, w["adapt_top.nonlinear.linear.weight"], w["adapt_top.nonlinear.linear.bias"]))
    x = torch.stack([x[:, i].reshape(batch, -1) for i in range(queries)], dim=2)
    x = x.reshape(batch, -1, rows, top_edge)
    x = x + sinusoid(x.shape[1], rows, top_edge).to(x)
    stretch = top_edge // rows
    x = F.conv_transpose2d(
        x, w["adapt_top.stretch.weight"], w["adapt_top.stretch.bias"],
        stride=(stretch, 1), padding=((stretch + 1) // 2, 1),
    )  # fmt: skip
    top = quantise(residual(w, "adapt_top.residual", x), w["quantise_top.code_KC"])

    patches = []
    for i in range(f_local.shape[1]):
        both = torch.cat([f_local[:, i], f_t_cls], dim=1)
        patches.append(
            F.relu(
                both @ w["adapt_bottom.nonlinear.linear.weight"].T + w["adapt_bottom.nonlinear.linear.bias"]
            )
        )
    x = torch.stack(patches, dim=2).reshape(batch, -1, grid, grid)
    x = residual(w, "adapt_bottom.residual", x + sinusoid(x.shape[1], grid, grid).to(x))
    given = deconvolution(w, "raise_top", straight_through(top))
    x = F.conv2d(torch.cat([given, x], dim=1), w["join.weight"], w["join.bias"])
    bottom = quantise(x, w["quantise_bottom.code_KC"])
    return decode(w, straight_through(top), straight_through(bottom), image_size), top, bottom


def decode(w: Mapping[str, Tensor], top: Tensor, bottom: Tensor, image_size: int) -> Tensor:
    """Equation (22): top upsampled and joined, base map, 2x blocks, the last one giving pixels."""
    x = torch.cat([deconvolution(w, "decoder.raise_top", top), bottom], dim=1)
    blocks = sum(bool(re.fullmatch(r"decoder\.layers\.\d+\.0\.weight", name)) for name in w)
    base = image_size // 2 ** (blocks + 1)
    same = x.shape[2] == base
    x = F.conv2d(x, w["decoder.layers.0.weight"], w["decoder.layers.0.bias"], padding=1 if same else 0)
    assert x.shape[2:] == (base, base)
    x = batch_norm(w, "decoder.layers.2", F.relu(x))
    for block in range(blocks):
        x = deconvolution(w, f"decoder.layers.{3 + block}", x)
    last = f"decoder.layers.{3 + blocks}"
    return F.conv_transpose2d(x, w[f"{last}.weight"], w[f"{last}.bias"], stride=2, padding=1)


def plain_tig(image: Tensor, made: tuple[Tensor, PlainMap, PlainMap], beta: float) -> Tensor:
    """Equation (23), squared norms as means over elements."""
    reconstruction, top, bottom = made
    loss = ((image - reconstruction) ** 2).mean()
    for z_e, _, e in (top, bottom):
        loss = loss + ((z_e.detach() - e) ** 2).mean() + beta * ((e.detach() - z_e) ** 2).mean()
    return loss
