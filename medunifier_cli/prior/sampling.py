"""Drawing codes from a prior: cached, seeded, the same whatever the batch size and the number of threads.

Sample `s` always sits in row `s % R` of tile `s // R`, and a tile is always computed in the same way by one
thread (`cache.py`); its draws come from a counter-based generator keyed by seed, level and sample. So its
codes are a function of (seed, s, settings, condition) on one machine, bit for bit.

Legend: T tiles, R rows of a tile, K codes, H x W the map, L = H * W, h x w the top map, D_t text width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
from torch import Tensor, nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws, draw_codes, uniforms
from medunifier_cli.prior.cache import CachedPrior
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.prepared import product_weights, tile_rows

MOST_TILES = 4
"""Tiles that go through a layer together; more would push each other's buffers out of the cache."""


def sample(
    prior: PixelSnail,
    *,
    shape: tuple[int, int],
    first_sample: int,
    count: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    condition: Tensor | None = None,
    guidance: float = 1.0,
    top_codes: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Draw samples number `first_sample` to `first_sample + count - 1`.

    Args:
        shape: (H, W) of the code map.
        condition: text features [count, D_t], for a prior built with text; None draws without text.
        guidance: see `Draws`; any other value than 1 costs a second pass.
        top_codes: int64 [count, h, w], for a bottom prior.
        progress: called with the number of codes just drawn, count * H * W in all; from worker threads, one
            at a time.

    Returns:
        int64 [count, H, W], on the CPU.

    Raises:
        MuError: for a value out of range, inputs that do not fit the prior, or logits that are not finite.
    """
    draws = Draws(seed, temperature, top_k, top_p, guidance)
    draws.check()
    _check_inputs(prior, shape, first_sample, count, draws, condition, top_codes)
    device = prior.head.weight.device
    rows = tile_rows(device)
    first_tile, offset = divmod(first_sample, rows)
    tiles = -(-(offset + count) // rows)
    real = torch.zeros(tiles * rows, dtype=torch.bool)
    real[offset : offset + count] = True

    def tiled(given: Tensor | None) -> Tensor | None:
        if given is None:
            return None
        padded = torch.zeros(tiles * rows, *given.shape[1:], dtype=given.dtype)
        padded[real] = given.cpu()
        return padded.view(tiles, rows, *given.shape[1:]).to(device)

    work = _Work(
        prior, product_weights(prior), shape, draws, first_tile, real.view(tiles, rows),
        tiled(condition), tiled(top_codes), progress,
    )  # fmt: skip
    was_training = prior.training
    prior.eval()
    try:
        codes = _in_threads(work, tiles, torch.get_num_threads() if device.type == "cpu" else 1)
    finally:
        prior.train(was_training)
    return codes.flatten(0, 1)[real]


class _Work:
    """All tiles of one call; `draw` does some of them."""

    def __init__(
        self,
        prior: PixelSnail,
        weights: dict[nn.Module, Tensor],
        shape: tuple[int, int],
        draws: Draws,
        first_tile: int,
        real_TR: Tensor,
        condition: Tensor | None,
        top_codes: Tensor | None,
        progress: Callable[[int], object] | None,
    ) -> None:
        self.prior, self.weights, self.shape, self.draws = prior, weights, shape, draws
        self.first_tile, self.real, self.condition, self.top_codes = first_tile, real_TR, condition, top_codes
        self.progress, self.lock, self.stop = progress, threading.Lock(), threading.Event()

    @torch.inference_mode()
    def draw(self, tiles: range) -> Tensor:
        """int64 [T, R, H, W] of the tiles asked."""
        height, width = self.shape
        guided = self.draws.guidance != 1
        cached = self.begin(slice(tiles.start, tiles.stop), guided)
        real = self.real[tiles.start : tiles.stop]
        device = self.prior.head.weight.device
        rows = real.shape[1]
        numbers = range((self.first_tile + tiles.start) * rows, (self.first_tile + tiles.stop) * rows)
        targets = uniforms(self.draws.seed, self.prior.top_stack is not None, numbers, height * width)
        targets_TRL = torch.from_numpy(targets).view(len(tiles), rows, -1)
        codes = torch.zeros(len(tiles), rows, height, width, dtype=torch.int64)
        for position in range(height * width):
            if self.stop.is_set():
                break
            row, column = divmod(position, width)
            logits = cached.logits(row, column).double().cpu()
            if guided:
                given, null = logits.chunk(2)
                logits = null + self.draws.guidance * (given - null)
            if not logits.isfinite().all():
                raise MuError(
                    f"the prior gives NaN or infinite logits at row {row}, column {column}: its weights are "
                    "damaged or its training diverged; take an earlier checkpoint or fit it again"
                )
            for tile in range(len(tiles)):  # one at a time, as all reductions
                codes[tile, :, row, column] = draw_codes(
                    logits[tile], targets_TRL[tile, :, position], self.draws
                )
            drawn = codes[:, :, row, column].to(device)
            cached.put(row, column, torch.cat((drawn, drawn)) if guided else drawn)
            if self.progress is not None:
                with self.lock:
                    self.progress(int(real.sum()))
        return codes

    def begin(self, tiles: slice, guided: bool) -> CachedPrior:
        """Caches of the tiles, followed by the same tiles without text where guided."""
        real = self.real[tiles]
        top = None if self.top_codes is None else self.top_codes[tiles]
        text = None if self.condition is None else self.condition[tiles]
        dropped = ~real
        if guided:
            top = None if top is None else torch.cat((top, top))
            text = None if text is None else torch.cat((text, text))
            dropped = torch.cat((dropped, torch.ones_like(dropped)))
        return CachedPrior(
            self.prior, self.weights, self.shape, tiles=len(dropped), top_codes=top, condition=text,
            drop_condition=dropped.to(self.prior.head.weight.device),
        )  # fmt: skip


def _in_threads(work: _Work, tiles: int, threads: int) -> Tensor:
    """Share the tiles out over threads that each compute alone.

    One thread a tile beats several threads a product: products of 8 rows are too small to be split, and no
    thread waits for another that the machine has put aside. It also keeps results free of the thread count.
    """
    most = max(1, MOST_TILES // (1 if work.draws.guidance == 1 else 2))
    groups = max(min(threads, tiles), -(-tiles // most))
    edges = [tiles * i // groups for i in range(groups + 1)]
    codes = [torch.empty(0)] * groups
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, "mu-sample", torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(work.draw, range(edges[i], edges[i + 1])): i for i in range(groups)}
        try:
            for future in as_completed(futures):
                codes[futures[future]] = future.result()
        finally:
            work.stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # what a thread sets for itself, later threads start with
    return torch.cat(codes)


def _check_inputs(
    prior: PixelSnail,
    shape: tuple[int, int],
    first_sample: int,
    count: int,
    draws: Draws,
    condition: Tensor | None,
    top_codes: Tensor | None,
) -> None:
    config = prior.config
    if count < 1 or first_sample < 0 or min(shape) < 1:
        raise MuError(
            f"nothing to draw: {count} samples from number {first_sample}, maps of {shape[0]}x{shape[1]}"
        )
    if condition is not None and not config.text_width:
        raise MuError(
            "this prior was fitted without text: fit it with `prior.condition: text`, or drop the prompt"
        )
    if condition is None and draws.guidance != 1:
        raise MuError(f"guidance {draws.guidance:g} needs a prompt")
    if condition is not None and condition.shape != (count, config.text_width):
        wanted = (count, config.text_width)
        raise MuError(f"text features are {tuple(condition.shape)}, the prior needs {wanted}")
    if (top_codes is None) != (not config.top_codes):
        raise MuError(f"top codes are {'missing' if top_codes is None else 'given to a prior without any'}")
    if top_codes is not None:
        if top_codes.dim() != 3 or len(top_codes) != count:
            raise MuError(f"top codes are {tuple(top_codes.shape)}, expected ({count}, height, width)")
        if top_codes.min() < 0 or top_codes.max() >= config.top_codes:
            raise MuError(
                f"top codes lie outside 0 to {config.top_codes - 1}: they come from another codebook"
            )
