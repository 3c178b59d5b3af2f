"""Measure the objectives of pre-training on a held-out split: reconstruction and codebooks (TIG), and ITM.

Reconstruction and codebook use take every image once. ITM sees each image with its own text and with another
one, so that guessing is right half of the time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import first_pairs, to_device
from medunifier_cli.data.loader import SplitSource, collate, eval_batches
from medunifier_cli.evaluate.benchmark import patients
from medunifier_cli.evaluate.fidelity import mean_image, psnr
from medunifier_cli.evaluate.pair_scores import other_texts
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.model.vit import pixels
from medunifier_cli.model.vqvae.quantizer import perplexity, place_counts, place_perplexity
from medunifier_cli.page.pictures import save_pairs
from medunifier_cli.terminal.progress import Progress

BATCH = 64
"""Samples per forward pass; changes no result beyond rounding."""
SHOWN = 16
"""Images in the picture of reconstructions."""


def evaluate(
    trained: PretrainedRun, train: SplitSource, heldout: SplitSource, split: str, shards: Path
) -> list[Metric]:
    """Measure the active objectives and write `results/pretraining-<dataset>-<split>.json`.

    Args:
        train: its mean image is the baseline of reconstruction.
        heldout: the split to measure, named `split`.
        shards: folder of both.

    Returns:
        The metrics; none, and no file, for a run with neither TIG nor ITM.
    """
    objectives, dataset = trained.recipe.objectives, trained.recipe.data.dataset
    metrics: list[Metric] = []
    if objectives.tig:
        metrics += _reconstruction(trained, train, heldout, split)
    if objectives.itm:
        metrics.append(_matching(trained, heldout))
    if metrics:
        Result(
            "pretraining", dataset, split, shards, n=len(heldout), seed=trained.recipe.train.seed,
            metrics=metrics,
            protocol=(
                "PSNR: mean over images, values in [0, 1]; baseline: the mean training image. Perplexity "
                "and dead codes: over all codes of the split. ITM: each image with its own text and with one "
                "sampled from the texts that differ from it; baseline: guessing. Intervals: 95 %, 1,000 "
                f"bootstrap resamples of patients. Forward passes in {trained.precision}"
            ),
        ).write(trained)  # fmt: skip
    return metrics


def _reconstruction(
    trained: PretrainedRun, train: SplitSource, heldout: SplitSource, split: str
) -> list[Metric]:
    average = mean_image(train).to(trained.device)
    quality: list[Tensor] = []
    baseline: list[Tensor] = []
    counts: list[list[Tensor]] = []
    with torch.no_grad(), Progress(len(heldout), "image") as progress:
        for number, (batch, mask_B) in enumerate(
            eval_batches(heldout, batch_size=BATCH, rank=0, world=1, workers=0)
        ):
            batch = first_pairs(to_device(batch, trained.device), int(mask_B.sum()))
            image = pixels(batch.image_B1HW)
            reconstruction = trained.model.reconstruct(batch)
            quality.append(psnr(image, reconstruction.image_BCHW.float()).cpu())
            baseline.append(psnr(image, average.expand_as(image)).cpu())
            codes = len(reconstruction.top.count_K)
            counts.append([place_counts(level.code_BHW, codes).cpu() for level in reconstruction.levels])
            progress.advance(sum(map(len, quality)))
            if number == 0:
                path = trained.run.samples / f"reconstructions-{split}.png"
                save_pairs(image[:SHOWN], reconstruction.image_BCHW[:SHOWN], path)
    top_PK, bottom_PK = (torch.stack(of_level).sum(dim=0) for of_level in zip(*counts, strict=True))
    top_K, bottom_K = top_PK.sum(dim=0), bottom_PK.sum(dim=0)
    size = float(len(top_K))
    groups = patients(heldout, np.arange(len(heldout)))
    mean_image_psnr = float(torch.cat(baseline).mean())
    return [
        mean("reconstruction PSNR", torch.cat(quality), mean_image_psnr, "dB", groups=groups),
        Metric("perplexity, top codebook", float(perplexity(top_K)), 1.0, f"of {size:.0f}"),
        Metric("perplexity, bottom codebook", float(perplexity(bottom_K)), 1.0, f"of {size:.0f}"),
        Metric("perplexity at one position, top codebook", float(place_perplexity(top_PK)), 1.0),
        Metric("perplexity at one position, bottom codebook", float(place_perplexity(bottom_PK)), 1.0),
        Metric("dead codes, top codebook", float((top_K == 0).sum()), size - 1),
        Metric("dead codes, bottom codebook", float((bottom_K == 0).sum()), size - 1),
    ]


def _matching(trained: PretrainedRun, heldout: SplitSource) -> Metric:
    """ITM accuracy over every image with its own text and with another one."""
    partner_n = other_texts(heldout, trained.recipe.train.seed)
    hits: list[Tensor] = []
    pairs: list[int] = []
    for start in range(0, len(heldout), BATCH):
        own = range(start, min(start + BATCH, len(heldout)))
        paired = [i for i in own if partner_n[i] >= 0]
        numbers = [*own, *(int(partner_n[i]) for i in paired)]
        batch = to_device(collate([heldout.sample(i) for i in numbers], numbers), trained.device)
        image_M = torch.tensor([*range(len(own)), *(i - start for i in paired)])
        matched_M = torch.arange(len(numbers)) < len(own)
        # an image is encoded once, and matched with both of its texts
        with torch.no_grad():
            memory = trained.model.encode_image(pixels(batch.image_B1HW[: len(own)]))
            logits = trained.model.match(memory, image_M, batch.text)
        hits.append((logits.argmax(dim=1) == 1).cpu() == matched_M)
        pairs += [*own, *paired]
    groups = patients(heldout, np.array(pairs))
    return mean("ITM accuracy, random pairs", torch.cat(hits), 0.5, groups=groups)
