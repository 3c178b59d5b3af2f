"""New radiographs: prompts -> text features -> top codes -> bottom codes -> images; and reconstructions.

Letters: B images, T top edge, G bottom edge, D text width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import Fitted
from medunifier_cli.data.batch import first_pairs, to_device
from medunifier_cli.data.loader import eval_batches
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.synthesis.requests import ImageRequest, requests_hash, text_features
from medunifier_cli.evaluate.synthesis.sample_folder import SHEET, SampleFolder
from medunifier_cli.model.sampling import Draws
from medunifier_cli.model.vit import pixels
from medunifier_cli.page.pictures import save_rows
from medunifier_cli.prior.sampling import Inputs, sample
from medunifier_cli.terminal.progress import Progress

SHOWN_PAIRS = 12
"""Originals above their reconstructions in the contact sheet."""
DEFAULT_BATCH = {"cpu": 64, "cuda": 256}
RECONSTRUCT_BATCH = 64


def synthesize(
    fitted: Fitted, out: Path, n: int, wishes: Sequence[ImageRequest], draws: Draws, batch: int = 0
) -> SampleFolder:
    """Fill `out` with samples 0 to n - 1; those that are there already stay.

    Args:
        wishes: sample s shows wish s mod their number; empty for none.
        draws: seed and how codes are drawn.
        batch: images drawn together; changes speed and memory, never an image. 0 for a good one.

    Raises:
        DataError: the folder cannot be used, or a prompt is too long.
        MuError: a setting out of range, or priors that give logits that are not finite.
    """
    draws.check()
    if wishes and fitted.recipe.prior.condition == "none":
        raise CheckpointError(
            f"{fitted.run.folder}: these priors know no text; fit some with "
            "`mu fit-prior ... -o prior.condition=text`, or leave the prompt out"
        )
    if draws.guidance != 1 and not wishes:
        raise DataError(f"guidance {draws.guidance:g} needs a prompt")
    feature_WD = torch.from_numpy(text_features(fitted.trained, wishes)) if wishes else None
    settings = {
        "priors": fitted.identity, "pretrained": fitted.trained.identity, "prompts": requests_hash(wishes),
        **asdict(draws),
    }  # fmt: skip
    folder = SampleFolder(out, settings)
    if len(folder.done) > n:
        raise DataError(f"{out}: holds {len(folder.done):,} images already; ask for as many or more")
    batch = batch or DEFAULT_BATCH.get(fitted.trained.device.type, 64)
    missing = [number for number in range(n) if number not in folder.done]
    with Progress(n, "image", first=n - len(missing)) as progress:
        for start in range(0, n, batch):
            wanted = [number for number in missing if start <= number < start + batch]
            if wanted:
                numbers = range(wanted[0], wanted[-1] + 1)
                _draw(fitted, folder, numbers, wishes, feature_WD, draws)
                progress.advance(len(folder.done))
    folder.finish()
    return folder


def _draw(
    fitted: Fitted, folder: SampleFolder, numbers: range, wishes: Sequence[ImageRequest],
    feature_WD: Tensor | None, draws: Draws,
) -> None:  # fmt: skip
    generator = fitted.trained.model.generator
    text = None if feature_WD is None else feature_WD[[number % len(wishes) for number in numbers]]
    top_size, bottom_size = (generator.top, generator.top), (generator.grid, generator.grid)
    top = sample(fitted.pair.top, top_size, numbers, draws, Inputs(text))
    bottom = sample(fitted.pair.bottom, bottom_size, numbers, draws, Inputs(text, top))
    for row, number in enumerate(numbers):
        if number in folder.done:
            continue
        wish = wishes[number % len(wishes)] if wishes else ImageRequest("", "")
        line = {
            "prompt": wish.prompt, "class": wish.name, "codes": codes_hash(top[row], bottom[row]),
            **asdict(draws),
        }  # fmt: skip
        folder.add(number, f"{number:06d}.png", decode(fitted.trained, top[row], bottom[row]), line)


def reconstructions(trained: PretrainedRun, asked: Benchmark) -> Iterator[NDArray[np.uint8]]:
    """Every image of a split through its codes, in batches [B, S, S]."""
    with torch.no_grad():
        for batch, mask_B in eval_batches(
            asked.source, batch_size=RECONSTRUCT_BATCH, rank=0, world=1, workers=0
        ):
            batch = first_pairs(to_device(batch, trained.device), int(mask_B.sum()))
            yield to_grey(trained.model.reconstruct(batch).image_BCHW)


def decode(trained: PretrainedRun, top_TT: Tensor, bottom_GG: Tensor) -> NDArray[np.uint8]:
    """Codes of one image -> grey levels [S, S]. One at a time: a batch could change how a sum is rounded."""
    with torch.no_grad():
        image = trained.model.generator.from_codes(
            top_TT[None].to(trained.device), bottom_GG[None].to(trained.device)
        )
    grey_SS: NDArray[np.uint8] = to_grey(image)[0]
    return grey_SS


def to_grey(image_BCHW: Tensor) -> NDArray[np.uint8]:
    """[B, 3, S, S] about [0, 1] -> uint8 [B, S, S]."""
    grey = image_BCHW.float().clamp(0, 1).mean(dim=1)
    result: NDArray[np.uint8] = (grey * 255).round().to(torch.uint8).cpu().numpy()
    return result


def codes_hash(top_TT: Tensor, bottom_GG: Tensor) -> str:
    """Short hash of an image's codes: equal for images drawn alike, wherever they were decoded."""
    digest = hashlib.sha256()
    for codes in (top_TT, bottom_GG):
        digest.update(f"{tuple(codes.shape)}".encode() + codes.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def reconstruct(trained: PretrainedRun, asked: Benchmark, out: Path, n: int = 0) -> SampleFolder:
    """Images of a split through their codes (figure 3, middle row); originals above in the contact sheet.

    Args:
        n: the first so many; 0 for all.
    """
    if not trained.recipe.objectives.tig:
        raise CheckpointError(f"{trained.run.folder}: trained without TIG, it reconstructs nothing")
    settings = {"reconstruct": f"{asked.plugin.name}/{asked.split}", "pretrained": trained.identity}
    folder, n = SampleFolder(out, settings), min(n or len(asked.source), len(asked.source))
    shown: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]] = []
    batches = eval_batches(
        asked.source, batch_size=RECONSTRUCT_BATCH, rank=0, world=1, workers=0,
        batches=-(-n // RECONSTRUCT_BATCH),
    )  # fmt: skip
    with Progress(n, "image") as progress, torch.no_grad():
        for batch, mask_B in batches:
            count = min(int(mask_B.sum()), n - int(batch.position_B[0]))
            batch = first_pairs(to_device(batch, trained.device), count)
            made = to_grey(trained.model.reconstruct(batch).image_BCHW)
            originals = to_grey(pixels(batch.image_B1HW))
            shown += list(zip(originals, made, strict=True))[: SHOWN_PAIRS - len(shown)]
            for place, key, image in zip(batch.position_B.tolist(), batch.keys, made, strict=True):
                if place not in folder.done:
                    folder.add(place, f"{place:06d}.png", image, {"key": key})
            progress.advance(min(n, int(batch.position_B[-1]) + 1))
    folder.finish()
    rows = [[pair[side] / 255.0 for pair in shown] for side in (0, 1)]
    save_rows(rows, out / SHEET)
    return folder
