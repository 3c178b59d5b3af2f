"""Synthesize radiographs from prompts, and reconstruct real ones through their codes.

Prompts -> text features -> top codes -> bottom codes -> images.

Letters: B images, T top edge, G bottom edge, D text width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import FittedPriors
from medunifier_cli.data.loader import collate
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.evaluate.benchmark import Benchmark, patients
from medunifier_cli.evaluate.best_of import best_match, need_itm
from medunifier_cli.evaluate.codes import (
    codes_hash,
    decode,
    need_tig,
    reconstruct_batch,
    reconstructed_batches,
    to_grey,
)
from medunifier_cli.evaluate.fidelity import mean_image, psnr
from medunifier_cli.evaluate.results import Metric, mean
from medunifier_cli.evaluate.shared.sharing import each, share_of_rank
from medunifier_cli.evaluate.synthesis.requests import (
    ImageRequest,
    requests_hash,
    text_features,
    token_states,
)
from medunifier_cli.evaluate.synthesis.sample_folder import (
    FIGURE,
    FIGURE_FACTS,
    SHEET,
    SampleFolder,
    captioned_pairs,
    origin_of,
    read_grey,
)
from medunifier_cli.files import write_text
from medunifier_cli.model.sampling import Draws
from medunifier_cli.model.vit import pixels
from medunifier_cli.page.pictures import save_rows, save_sheet
from medunifier_cli.page.run_page import GENERATED, MOST_TILES
from medunifier_cli.prior.contract import TextStates
from medunifier_cli.prior.prepared import tile_rows
from medunifier_cli.terminal.progress import Progress

SHOWN_PAIRS = 12
"""Originals with their reconstructions in the contact sheet."""
FIGURE_COLUMNS = 8
DEFAULT_BATCH = {"cpu": 64, "cuda": 256}


def synthesize(
    fitted: FittedPriors, out: Path, n: int, requests: Sequence[ImageRequest], draws: Draws, batch: int = 0,
    texts_of: Path | None = None, best_of: int = 1,
) -> SampleFolder:  # fmt: skip
    """Fill the folder `out` with samples 0 to n - 1; those that are there already stay.

    Args:
        requests: taken in turn, sample s gets request s mod their number; empty for no prompts.
        draws: seed and settings of code sampling.
        batch: images per batch; changes speed and memory, never an image. 0 for the device's default.
        texts_of: the file of the prompts, see `files.atomic_write`.
        best_of: images drawn for each sample, of which the one that matches its prompt best is kept.

    Raises:
        CheckpointError, DataError: see `sampler`; or the folder cannot be used.
        MuError: a setting out of range, or priors that give logits that are not finite.
    """
    prompted = sampler(fitted, requests, draws, best_of)
    origin = origin_of(fitted.run.folder.name, fitted.identity)
    folder = SampleFolder(out, prompted.settings, texts_of, origin)
    check_number(folder.folder, len(folder.done), n)
    missing = [number for number in range(n) if number not in folder.done]
    # no more than the ranks need to have one batch each
    most = share_of_rank(n, tile_rows(fitted.pretrained.device))
    batch = min(batch or DEFAULT_BATCH.get(fitted.pretrained.device.type, 64), most)
    batch = max(1, batch // best_of)  # candidates of a batch are drawn together
    starts = range(0, n, batch)
    gaps = [[number for number in missing if start <= number < start + batch] for start in starts]
    compute = partial(_sample_images, prompted)
    with (
        Progress(n, "image", first=n - len(missing)) as progress,
        closing(each(compute, list(filter(None, gaps)))) as batches,
    ):
        for images in batches:
            for number, image_SS, facts in images:
                request = requests[number % len(requests)] if requests else ImageRequest("", "")
                line = {"prompt": request.prompt, "class": request.name, **facts, **asdict(draws)}
                folder.add(number, f"{number:06d}.png", image_SS, line)
            progress.advance(len(folder.done))
    folder.finish()
    if fitted.run.writable:
        _save_for_the_page(fitted, folder)
    return folder


def check_number(folder: Path, there: int, n: int) -> None:
    """Raise DataError for a folder that has more images already than the `n` which it is asked to have."""
    if there > n:
        raise DataError(f"{folder}: holds {there:,} images already; set --n to at least that")


def _save_for_the_page(fitted: FittedPriors, folder: SampleFolder) -> None:
    """The first images in the run's own folder: its page shows them when the folder of samples has moved."""
    lines = [folder.done[sample] for sample in sorted(folder.done)[:MOST_TILES]]
    images = [read_grey(folder.folder / line["image"]) for line in lines]
    captions = [line["prompt"] or line["class"] for line in lines]
    save_rows([images], fitted.run.samples / GENERATED, captions, folder.texts_of)


@dataclass(frozen=True)
class Sampler:
    """Samples codes for prompts from the priors of a run; made by `sampler`."""

    fitted: FittedPriors
    requests: Sequence[ImageRequest]
    texts: Tensor | TextStates | None
    """Of each request, as the priors read them; None without."""
    draws: Draws
    best_of: int = 1
    """Candidates of each sample: sample s has those from s * best_of on."""

    @property
    def settings(self) -> dict[str, Any]:
        """What all images of a folder have in common: one that was begun with others is refused."""
        return {
            "priors": self.fitted.identity, "pretrained": self.fitted.pretrained.identity,
            "prompts": requests_hash(self.requests), **asdict(self.draws), **self.fitted.prior.decoding,
            **({"best_of": self.best_of} if self.best_of > 1 else {}),
        }  # fmt: skip

    def codes(self, numbers: range) -> tuple[Tensor, Tensor]:
        """Top [B, T, T] and bottom [B, G, G] codes of B consecutive candidates, int64 on the CPU.

        They depend on the number of a candidate and not on the others in the call.
        """
        requests, each_has = len(self.requests), self.best_of
        rows = [number // each_has % requests for number in numbers] if requests else []
        texts = self.texts
        text = texts.rows(rows) if isinstance(texts, TextStates) else None if texts is None else texts[rows]
        top_edge = self.fitted.pretrained.model.generator.top
        return self.fitted.prior.sample(top_edge, numbers, self.draws, text)


def sampler(
    fitted: FittedPriors, requests: Sequence[ImageRequest], draws: Draws, best_of: int = 1
) -> Sampler:
    """What samples codes for requests, taken in turn; empty for no prompts.

    Raises:
        CheckpointError: prompts for priors that were fitted without text, or several candidates and no ITM.
        DataError: a prompt that is empty or too long, or guidance without a prompt.
        MuError: a setting out of range.
    """
    draws.check()
    if requests and fitted.recipe.prior.condition == "none":
        raise CheckpointError(
            f"{fitted.run.folder}: these priors were fitted without text; fit others with "
            "`mu fit-prior ... -o prior.condition=text`, or leave the prompt out"
        )
    if draws.guidance != 1 and not requests:
        raise DataError(f"guidance {draws.guidance:g} needs a prompt")
    if best_of > 1:
        if not requests:
            raise DataError(f"--best-of {best_of} needs a prompt")
        need_itm(fitted.pretrained)
    return Sampler(fitted, requests, _texts_of(fitted, requests) if requests else None, draws, best_of)


def _texts_of(fitted: FittedPriors, requests: Sequence[ImageRequest]) -> Tensor | TextStates:
    """The prompts as the priors read them."""
    if fitted.prior.tokens:
        return token_states(fitted.pretrained, requests)
    return torch.from_numpy(text_features(fitted.pretrained, requests))


def generate(
    fitted: FittedPriors, n: int, requests: Sequence[ImageRequest], draws: Draws, best_of: int = 1
) -> list[NDArray[np.uint8]]:
    """Samples 0 to n - 1 as grey levels [S, S], the images that `synthesize` writes.

    Raises:
        MuError: see `sampler`.
    """
    prompted = sampler(fitted, requests, draws, best_of)
    images = []
    batch = max(1, DEFAULT_BATCH.get(fitted.pretrained.device.type, 64) // best_of)
    for start in range(0, n, batch):
        drawn = _sample_images(prompted, range(start, min(start + batch, n)))
        images += [image_SS for _, image_SS, _ in drawn]
    return images


def _sample_images(
    prompted: Sampler, wanted: Sequence[int]
) -> list[tuple[int, NDArray[np.uint8], dict[str, Any]]]:
    """Number, grey levels [S, S] and facts of each image; `wanted` are numbers, in ascending order."""
    pretrained, each_has = prompted.fitted.pretrained, prompted.best_of
    # codes are of consecutive numbers: what lies between two gaps is sampled again, and not saved
    numbers = range(wanted[0] * each_has, (wanted[-1] + 1) * each_has)
    top, bottom = prompted.codes(numbers)
    images = []
    for number in wanted:
        first = number * each_has - numbers.start
        drawn = [(top[i], bottom[i]) for i in range(first, first + each_has)]
        shown = [decode(pretrained, *codes) for codes in drawn]
        chosen, facts = 0, {}
        if each_has > 1:
            text = prompted.requests[number % len(prompted.requests)].prompt
            chosen, odds = best_match(pretrained, shown, text)
            facts = {"best_of": each_has, "candidate": chosen, "match": round(odds, 4)}
        images.append((number, shown[chosen], {"codes": codes_hash(*drawn[chosen]), **facts}))
    return images


def reconstruct(
    pretrained: PretrainedRun, benchmark: Benchmark, out: Path, n: int = 0
) -> tuple[SampleFolder, Metric]:
    """Reconstruct images of a split (figure 3, middle row) into the folder `out`.

    The contact sheet shows originals beside their reconstructions.

    Args:
        benchmark: of any data set; samples with text.
        n: only the first n images; 0 for all.

    Returns:
        The folder, and the PSNR beside that of the mean of these images.

    Raises:
        CheckpointError: the model was trained without TIG and has no codes.
        DataError: the folder cannot be used.
    """
    need_tig(pretrained)
    origin = origin_of(pretrained.run.folder.name, pretrained.identity)
    folder = SampleFolder(out, reconstruction_settings(pretrained, benchmark), origin=origin)
    n = min(n or len(benchmark.source), len(benchmark.source))
    average = mean_image(benchmark.source, n)
    quality: list[Tensor] = []
    baseline: list[Tensor] = []
    shown: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
    with Progress(n, "image") as progress:
        for batch, images in reconstructed_batches(pretrained, benchmark, n):
            originals = to_grey(pixels(batch.image_B1HW))
            shown += list(zip(originals, images, strict=True))[: SHOWN_PAIRS - len(shown)]
            real_B1HW = batch.image_B1HW / 255.0
            quality.append(psnr(real_B1HW, torch.from_numpy(images)[:, None] / 255.0))
            baseline.append(psnr(real_B1HW, average.expand_as(real_B1HW)))
            for row, (number, key) in enumerate(zip(batch.position_B.tolist(), batch.keys, strict=True)):
                if number not in folder.done:
                    line = {"key": key, "psnr": round(float(quality[-1][row]), 3)}
                    folder.add(number, f"{number:06d}.png", images[row], line)
            progress.advance(int(batch.position_B[-1]) + 1)
    folder.finish()
    save_sheet(captioned_pairs(shown, torch.cat(quality).tolist()), out / SHEET)
    groups = patients(benchmark.source, np.arange(n))
    floor = float(torch.cat(baseline).mean())
    return folder, mean("reconstruction PSNR", torch.cat(quality), floor, "dB", groups=groups)


def reconstruction_settings(pretrained: PretrainedRun, benchmark: Benchmark) -> dict[str, Any]:
    """What all images of a folder of reconstructions have in common, as `Sampler.settings`."""
    split = f"{benchmark.plugin.name}/{benchmark.split}"
    return {"reconstruct": split, "pretrained": pretrained.identity}


def write_figure(pretrained: PretrainedRun, benchmark: Benchmark, folder: SampleFolder, seed: int) -> Path:
    """Write figure 3 of the paper into a folder of synthetic images, as one picture.

    Top: real images of a split; middle: their reconstructions; bottom: synthetic images, not related to those
    above them. All are drawn at random and none is selected; `figure.json` names them.

    Args:
        benchmark: the split, of the data set that the model was trained on; samples with text.
        seed: of the draw.
    """
    source, random = benchmark.source, np.random.default_rng(seed)
    columns = min(FIGURE_COLUMNS, len(source), len(folder.done))
    numbers = [int(number) for number in random.permutation(len(source))[:columns]]
    samples = [int(sample) for sample in random.permutation(sorted(folder.done))[:columns]]
    batch = collate([source.sample(number) for number in numbers], numbers)
    names = [folder.done[sample]["image"] for sample in samples]
    rows = [
        [image_SS / 255.0 for image_SS in to_grey(pixels(batch.image_B1HW))],
        [image_SS / 255.0 for image_SS in reconstruct_batch(pretrained, batch)],
        [read_grey(folder.folder / name) for name in names],
    ]
    save_rows(rows, folder.folder / FIGURE)
    facts = {
        "split": f"{benchmark.plugin.name}/{benchmark.split}", "seed": seed, "real": list(batch.keys),
        "synthetic": names,
    }  # fmt: skip
    write_text(folder.folder / FIGURE_FACTS, json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return folder.folder / FIGURE
