"""Measure the objectives of pre-training on a held-out split: reconstruction and codebooks (TIG), and ITM.

Reconstruction and codebook use take every image once. ITM sees each image with its own text and with another
one, so that guessing is right half of the time.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import Batch, PackedText, first_pairs, to_device
from medunifier_cli.data.loader import SplitSource, eval_batches, eval_workers
from medunifier_cli.distributed import world
from medunifier_cli.evaluate.benchmark import patients
from medunifier_cli.evaluate.pair_scores import other_texts
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.vit import pixels
from medunifier_cli.model.vqvae.quantizer import perplexity, place_counts, place_perplexity
from medunifier_cli.page.pictures import save_pairs
from medunifier_cli.terminal.progress import Progress

BATCH = 64
"""Samples per forward pass and rank; changes no result beyond rounding."""
SHOWN = 16
"""Images in the picture of reconstructions."""
MEAN_OF = 10_000
"""Training images of which the mean image is made, at most: it is off by about a hundredth of the deviation
between images, and to decode 243,300 of them takes one core five minutes."""


def evaluate(
    trained: PretrainedRun, train: SplitSource, heldout: SplitSource, split: str, shards: Path
) -> list[Metric]:
    """Measure the active objectives and write `results/pretraining-<dataset>-<split>.json`.

    All ranks call it and share the work; the main rank writes. A checkpoint that was measured before, on the
    same data in the same way, is not measured again.

    Args:
        train: its mean image is the baseline of reconstruction.
        heldout: the split to measure, named `split`.
        shards: folder of both.

    Returns:
        The metrics, on every rank; none, and no file, for a run with neither TIG nor ITM.
    """
    objectives, dataset = trained.recipe.objectives, trained.recipe.data.dataset
    if not (objectives.tig or objectives.itm):
        return []
    result = Result(
        "pretraining", dataset, split, shards, n=len(heldout), seed=trained.recipe.train.seed, metrics=[],
        protocol=(
            "PSNR: mean over images, values in [0, 1]; baseline: the mean training image"
            f"{_of_how_many(train)}. Perplexity and dead codes: over all codes of the split. ITM: each "
            "image with its own text and with one sampled from the texts that differ from it; baseline: "
            "guessing. Intervals: 95 %, 1,000 "
            f"bootstrap resamples of patients. Forward passes in {trained.precision}"
        ),
    )  # fmt: skip
    # the main rank alone looks: the others would measure where a file is not seen yet by all of them
    earlier = world.exchange(result.metrics_before(trained) if world.is_main() else None)[0]
    if earlier is not None:
        return [Metric.from_json(metric) for metric in earlier]
    metrics: list[Metric] = []
    if objectives.tig:
        metrics += _reconstruction(trained, train, heldout, split)
    if objectives.itm:
        metrics.append(_matching(trained, heldout))
    if world.is_main():
        dataclasses.replace(result, metrics=metrics).write(trained)
    return metrics


def psnr(image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, [B]; the peak is 1.

    Args:
        image_BCHW: values in [0, 1].
        other_BCHW: clamped to [0, 1] first, as a picture of it would be.
    """
    error_B = (image_BCHW - other_BCHW.clamp(0, 1)).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error_B.clamp(min=1e-12))  # equal images get 120 dB and not infinity


def mean_image(source: SplitSource, device: torch.device | None = None) -> Tensor:
    """Mean of the images of a split, [1, 1, H, W] in [0, 1]; of a large one, of `MEAN_OF` evenly spaced.

    All ranks call it and share the work.

    Args:
        device: where ranks exchange tensors; by default the CPU.
    """
    if len(source) > MEAN_OF:
        source = copy.copy(source)
        source.rows = source.rows[np.arange(MEAN_OF) * len(source) // MEAN_OF]
    total = torch.zeros((source.data.image_size,) * 2, dtype=torch.float64)
    for batch, mask_B in _batches(source):
        total += batch.image_B1HW[mask_B].double().sum(dim=(0, 1))
    return (_of_all_ranks(total, device) / len(source) / 255.0).float()[None, None]


def _of_how_many(source: SplitSource) -> str:
    return f" (of {MEAN_OF:,} of them)" if len(source) > MEAN_OF else ""


def _batches(source: SplitSource) -> Iterator[tuple[Batch, Tensor]]:
    """This rank's batches of a split, each with its mask of rows that are no repetition."""
    count = -(-len(source) // (BATCH * world.size()))
    return eval_batches(
        source, batch_size=BATCH, rank=world.rank(), world=world.size(),
        workers=eval_workers(source.data.workers, count),
    )  # fmt: skip


def _of_all_ranks(mine: Tensor, device: torch.device | None) -> Tensor:
    """The sum over ranks, on the CPU: the whole, where each has filled in its part and left 0 elsewhere."""
    return world.all_sum(mine.to(device or mine.device)).cpu()


def _reconstruction(
    trained: PretrainedRun, train: SplitSource, heldout: SplitSource, split: str
) -> list[Metric]:
    device = trained.device
    average = mean_image(train, device).to(device)
    quality_n, baseline_n = torch.zeros(2, len(heldout))
    counts: list[Tensor] = []
    with measuring(), Progress(len(heldout), "image", hidden=not world.is_main()) as progress:
        for number, (batch, mask_B) in enumerate(_batches(heldout)):
            # at least one: the last batch of a late rank may hold repetitions alone
            real = int(mask_B.sum())
            batch = first_pairs(to_device(batch, device), max(1, real))
            image = pixels(batch.image_B1HW)
            reconstruction = trained.model.reconstruct(batch)
            here = batch.position_B[:real]
            quality_n[here] = psnr(image, reconstruction.image_BCHW.float()).cpu()[:real]
            baseline_n[here] = psnr(image, average.expand_as(image)).cpu()[:real]
            of_levels = [
                place_counts(level.code_BHW[:real], len(level.count_K)) for level in reconstruction.levels
            ]
            counts = [a + b for a, b in zip(counts, of_levels, strict=True)] if counts else of_levels
            progress.advance(min(len(heldout), (number + 1) * BATCH * world.size()))
            if number == 0 and world.is_main():
                path = trained.run.samples / f"reconstructions-{split}.png"
                save_pairs(image[:SHOWN], reconstruction.image_BCHW[:SHOWN], path)
    top_PK, bottom_PK = (_of_all_ranks(of_level, device) for of_level in counts)
    top_K, bottom_K = top_PK.sum(dim=0), bottom_PK.sum(dim=0)
    size = float(len(top_K))
    groups = patients(heldout, np.arange(len(heldout)))
    quality_n, baseline_n = _of_all_ranks(quality_n, device), _of_all_ranks(baseline_n, device)
    return [
        mean("reconstruction PSNR", quality_n, float(baseline_n.mean()), "dB", groups=groups),
        Metric("perplexity, top codebook", float(perplexity(top_K)), 1.0, f"of {size:.0f}"),
        Metric("perplexity, bottom codebook", float(perplexity(bottom_K)), 1.0, f"of {size:.0f}"),
        Metric("perplexity at one position, top codebook", float(place_perplexity(top_PK)), 1.0),
        Metric("perplexity at one position, bottom codebook", float(place_perplexity(bottom_PK)), 1.0),
        Metric("dead codes, top codebook", float((top_K == 0).sum()), size - 1),
        Metric("dead codes, bottom codebook", float((bottom_K == 0).sum()), size - 1),
    ]


def _matching(trained: PretrainedRun, heldout: SplitSource) -> Metric:
    """ITM accuracy over every image with its own text and with another one."""
    n = len(heldout)
    partner_n = other_texts(heldout, trained.recipe.train.seed)
    hits_2n = torch.zeros(2, n)  # with the own text, with the other
    for batch, mask_B in _batches(heldout):
        real = max(1, int(mask_B.sum()))
        own = batch.position_B[:real].tolist()
        paired = [row for row, i in enumerate(own) if partner_n[i] >= 0]
        texts = [heldout.token_ids(i) for i in (*own, *(int(partner_n[own[row]]) for row in paired))]
        # an image is encoded once, and matched with both of its texts
        image_M = torch.tensor([*range(real), *paired])
        with measuring():
            image_B1HW = batch.image_B1HW[:real].to(trained.device)
            memory = trained.model.encode_image(pixels(image_B1HW))
            logits = trained.model.match(memory, image_M, PackedText.of(texts, trained.device))
        if mask_B.any():
            said_M = (logits.argmax(dim=1) == 1).cpu()
            hits_2n[0, own] = said_M[:real].float()
            hits_2n[1, [own[row] for row in paired]] = (~said_M[real:]).float()
    hits_2n = _of_all_ranks(hits_2n, trained.device)
    hits: list[float] = []
    pairs: list[int] = []
    # in an order that no number of ranks changes: resamples are drawn by place
    for start in range(0, n, BATCH):
        own = list(range(start, min(start + BATCH, n)))
        paired = [i for i in own if partner_n[i] >= 0]
        hits += [*hits_2n[0, own].tolist(), *hits_2n[1, paired].tolist()]
        pairs += [*own, *paired]
    groups = patients(heldout, np.array(pairs))
    return mean("ITM accuracy, random pairs", hits, 0.5, groups=groups)
