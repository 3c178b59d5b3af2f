"""Sample code maps from a prior: cached, seeded, and the same for every batch size and number of threads.

Sample `s` always occupies row `s % R` of tile `s // R`. One thread computes a tile, always in the same way
(`cache.py`), and its random numbers come from a counter-based generator keyed by seed, level and sample. So
the codes of a sample are a function of (seed, s, settings, inputs) on one machine, bit for bit.

Legend: T tiles, R rows of a tile, K codes, H x W the map, L = H * W, h x w the top map, D_t text width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import torch
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws, draw_codes, uniforms
from medunifier_cli.prior.cache import CachedPrior
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.prepared import product_weights, tile_rows

MAX_TILES = 4
"""Tiles that go through a layer together; with more, their buffers evict each other from the CPU's cache."""


@dataclass(frozen=True)
class Inputs:
    """What a prior is conditioned on, one row per sample."""

    text: Tensor | None = None
    """Text features [count, D_t], for a prior built with text; None samples without text."""
    top_codes: Tensor | None = None
    """int64 [count, h, w], for a bottom prior."""


UNCONDITIONAL = Inputs()


def sample(
    prior: PixelSnail,
    shape: tuple[int, int],
    samples: range,
    draws: Draws,
    inputs: Inputs = UNCONDITIONAL,
) -> Tensor:
    """Sample one code map for each number in `samples`.

    Args:
        shape: (H, W) of the code map.
        samples: consecutive sample numbers. The same number gives the same codes in every call.
        draws: seed, temperature, truncation and guidance; any guidance but 1 costs a second pass.
        inputs: of these samples, in the same order.

    Returns:
        int64 [len(samples), H, W], on the CPU.

    Raises:
        MuError: for a value out of range, inputs that do not fit the prior, or logits that are not finite.
    """
    draws.check()
    _check_inputs(prior, shape, samples, draws, inputs)
    sampler = _Sampler(prior, shape, samples, draws, inputs)
    was_training = prior.training
    prior.eval()  # dropout would make codes depend on the global generator
    try:
        return sampler.run()
    finally:
        prior.train(was_training)


class Tiles:
    """All tiles of R rows that the samples of one call lie in, and the threads that compute them."""

    def __init__(self, samples: range, device: torch.device) -> None:
        self.device = device
        self.rows = tile_rows(device)
        self.first, offset = divmod(samples.start, self.rows)
        self.count = -(-(offset + len(samples)) // self.rows)
        # Sample s belongs in row s % R even where the call starts in the middle of a tile. The rows before
        # and after are computed as padding: a shorter tile would take another path through the matrix
        # products and could round differently.
        real = torch.zeros(self.count * self.rows, dtype=torch.bool)
        real[offset : offset + len(samples)] = True
        self.real_TR = real.view(self.count, self.rows)
        self.stop = threading.Event()

    def numbers(self, tiles: range) -> range:
        """The numbers of all samples of these tiles, padding included."""
        return range((self.first + tiles.start) * self.rows, (self.first + tiles.stop) * self.rows)

    def spread(self, values: Tensor | None) -> Tensor | None:
        """[count, ...] -> [T, R, ...] on the prior's device, zeros in the padding."""
        if values is None:
            return None
        padded = torch.zeros(*self.real_TR.shape, *values.shape[1:], dtype=values.dtype)
        padded[self.real_TR] = values.cpu()
        return padded.to(self.device)

    def gather(self, values_TR: Tensor) -> Tensor:
        """[T, R, ...] -> [count, ...], without the padding."""
        return values_TR.flatten(0, 1)[self.real_TR.flatten()]

    def compute(self, work: Callable[[range], Tensor], most: int) -> Tensor:
        """[T, R, ...]: what `work` returns for groups of at most `most` tiles, which threads share out.

        One thread per tile beats several threads per product: products of 8 rows are too small to be split,
        and no thread waits for another that the machine has put aside. It also keeps the results independent
        of the number of threads.
        """
        # On a GPU one thread issues all kernels; several would only queue up for the same stream.
        threads = torch.get_num_threads() if self.device.type == "cpu" else 1
        groups = max(min(threads, self.count), -(-self.count // most))
        edges = [self.count * i // groups for i in range(groups + 1)]
        results = [torch.empty(0)] * groups
        before = torch.get_num_threads()
        # Each worker sets its own products to one thread: the parallelism is over tiles, not inside a
        # product.
        with ThreadPoolExecutor(threads, "mu-sample", torch.set_num_threads, (1,)) as pool:
            futures = {pool.submit(work, range(edges[i], edges[i + 1])): i for i in range(groups)}
            try:
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
            finally:
                # After an error or Ctrl-C the other threads leave at their next position, not at the map's
                # end.
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(before)  # what a thread sets for itself, later threads start with
        return torch.cat(results)


class _Sampler:
    """One prior going code by code, with the inputs of all tiles."""

    def __init__(
        self, prior: PixelSnail, shape: tuple[int, int], samples: range, draws: Draws, inputs: Inputs
    ) -> None:
        self.prior, self.shape, self.draws = prior, shape, draws
        self.tiles = Tiles(samples, prior.head.weight.device)
        # A rearranged copy of every kernel, shared by all threads: they only read it.
        self.weights = product_weights(prior)
        self.inputs = Inputs(self.tiles.spread(inputs.text), self.tiles.spread(inputs.top_codes))

    def run(self) -> Tensor:
        """int64 [count, H, W]."""
        # Guidance doubles the tiles of a group (with and without text), so a group holds half as many.
        most = max(1, MAX_TILES // (1 if self.draws.guidance == 1 else 2))
        return self.tiles.gather(self.tiles.compute(self.sample_tiles, most))

    @torch.inference_mode()
    def sample_tiles(self, tiles: range) -> Tensor:
        """int64 [T, R, H, W] of some of the tiles; runs in one thread."""
        height, width = self.shape
        rows, device = self.tiles.rows, self.tiles.device
        guided = self.draws.guidance != 1
        cached = self._cached_prior(slice(tiles.start, tiles.stop), guided)
        # Every random number is known before the first code: the order in which threads run cannot move it.
        numbers = self.tiles.numbers(tiles)
        targets = uniforms(self.draws.seed, self.prior.top_stack is not None, numbers, height * width)
        targets_TRL = torch.from_numpy(targets).view(len(tiles), rows, -1)
        codes_TRHW = torch.zeros(len(tiles), rows, height, width, dtype=torch.int64)
        for position in range(height * width):
            if self.tiles.stop.is_set():
                break
            row, column = divmod(position, width)
            # float64, as the cumulative probabilities are compared with 53-bit uniforms; on the CPU, so that
            # one routine picks the code whichever device computed the logits.
            logits_TRK = cached.logits(row, column).double().cpu()
            if guided:
                with_text, without = logits_TRK.chunk(2)
                # Classifier-free guidance (Ho and Salimans 2022): away from what the prior says of any image.
                logits_TRK = without + self.draws.guidance * (with_text - without)
            if not logits_TRK.isfinite().all():
                raise MuError(
                    f"the prior gives NaN or infinite logits at row {row}, column {column}: its weights are "
                    "damaged or its training diverged; use an earlier checkpoint or fit it again"
                )
            for tile in range(len(tiles)):  # one at a time, as all reductions: see `cache.py`
                codes_TRHW[tile, :, row, column] = draw_codes(
                    logits_TRK[tile], targets_TRL[tile, :, position], self.draws
                )
            codes_TR = codes_TRHW[:, :, row, column].to(device)
            # Both halves continue from the code sampled for the guided mixture: they share one past.
            cached.put(row, column, torch.cat((codes_TR, codes_TR)) if guided else codes_TR)
        return codes_TRHW

    def _cached_prior(self, tiles: slice, guided: bool) -> CachedPrior:
        """Caches of the tiles; where guided, followed by the same tiles without text."""
        real = self.tiles.real_TR[tiles]
        top = None if self.inputs.top_codes is None else self.inputs.top_codes[tiles]
        text = None if self.inputs.text is None else self.inputs.text[tiles]
        dropped = ~real  # padding carries no text
        if guided:
            # Doubled along the tile axis, never along the rows: a tile keeps its size, so the half with text
            # has the very bits of a call without guidance.
            top = None if top is None else torch.cat((top, top))
            text = None if text is None else torch.cat((text, text))
            dropped = torch.cat((dropped, torch.ones_like(dropped)))
        return CachedPrior(
            self.prior, self.weights, self.shape, tiles=len(dropped), top_codes=top, condition=text,
            drop_condition=dropped.to(self.tiles.device),
        )  # fmt: skip


def _check_inputs(
    prior: PixelSnail, shape: tuple[int, int], samples: range, draws: Draws, inputs: Inputs
) -> None:
    config, count = prior.config, len(samples)
    if count < 1 or samples.start < 0 or samples.step != 1 or min(shape) < 1:
        raise MuError(f"nothing to sample: {samples}, maps of {shape[0]}x{shape[1]}")
    if inputs.text is not None and not config.text_width:
        raise MuError(
            "this prior was fitted without text: fit it with `prior.condition: text`, or drop the prompt"
        )
    if inputs.text is None and draws.guidance != 1:
        raise MuError(f"guidance {draws.guidance:g} needs a prompt")
    if inputs.text is not None and inputs.text.shape != (count, config.text_width):
        expected = (count, config.text_width)
        raise MuError(f"text features are {tuple(inputs.text.shape)}, the prior needs {expected}")
    top_codes = inputs.top_codes
    if (top_codes is None) != (not config.top_codes):
        raise MuError(
            f"top codes are {'missing' if top_codes is None else 'given to a prior that takes none'}"
        )
    if top_codes is not None:
        if top_codes.dim() != 3 or len(top_codes) != count:
            raise MuError(f"top codes are {tuple(top_codes.shape)}, expected ({count}, height, width)")
        if top_codes.min() < 0 or top_codes.max() >= config.top_codes:
            raise MuError(
                f"top codes lie outside 0 to {config.top_codes - 1}: they come from another codebook"
            )
