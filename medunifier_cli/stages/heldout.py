"""Measure the objectives of pre-training on a held-out split: reconstruction and codebooks (TIG), and ITM.

Reconstruction and codebook use take every image once. ITM sees each image with its own text and with another
one, random or the nearest by ITC, so that guessing is right half of the time.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import PackedText, first_pairs, to_device
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.distributed import world
from medunifier_cli.evaluate.benchmark import patients
from medunifier_cli.evaluate.fidelity import (
    BATCH,
    batches_of_rank,
    mean_image,
    of_all_ranks,
    of_how_many,
    psnr,
)
from medunifier_cli.evaluate.pair_scores import other_texts
from medunifier_cli.evaluate.results import Metric, Result, mean
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.vit import pixels
from medunifier_cli.model.vqvae.quantizer import perplexity, place_counts, place_perplexity
from medunifier_cli.page.pictures import save_pairs
from medunifier_cli.scores.search import search
from medunifier_cli.terminal.progress import Progress

SHOWN = 16
"""Images in the picture of reconstructions."""
CANDIDATES = 64
"""Nearest texts among which a hard one is looked for: a text that many samples share takes up several."""


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
            f"{of_how_many(train)}. Perplexity and dead codes: over all codes of the split. ITM: each "
            "image with its own text and with one sampled from the texts that differ from it; in hard pairs, "
            "with the one of them that ITC takes for the nearest; baseline: guessing. Intervals: 95 %, 1,000 "
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
        heldout = heldout.with_features(heldout.features, images=False)
        random_n = other_texts(heldout, trained.recipe.train.seed)
        metrics.append(_matching(trained, heldout, random_n, "random pairs"))
        metrics.append(_hard_matching(trained, heldout))
    if world.is_main():
        dataclasses.replace(result, metrics=metrics).write(trained)
    return metrics


def _reconstruction(
    trained: PretrainedRun, train: SplitSource, heldout: SplitSource, split: str
) -> list[Metric]:
    device = trained.device
    average = mean_image(train, device=device).to(device)
    quality_n, baseline_n = torch.zeros(2, len(heldout))
    counts: list[Tensor] = []
    with measuring(), Progress(len(heldout), "image", hidden=not world.is_main()) as progress:
        for number, (batch, mask_B) in enumerate(batches_of_rank(heldout)):
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
    top_PK, bottom_PK = (of_all_ranks(of_level, device) for of_level in counts)
    top_K, bottom_K = top_PK.sum(dim=0), bottom_PK.sum(dim=0)
    size = float(len(top_K))
    groups = patients(heldout, np.arange(len(heldout)))
    quality_n, baseline_n = of_all_ranks(quality_n, device), of_all_ranks(baseline_n, device)
    return [
        mean("reconstruction PSNR", quality_n, float(baseline_n.mean()), "dB", groups=groups),
        Metric("perplexity, top codebook", float(perplexity(top_K)), 1.0, f"of {size:.0f}"),
        Metric("perplexity, bottom codebook", float(perplexity(bottom_K)), 1.0, f"of {size:.0f}"),
        Metric("perplexity at one position, top codebook", float(place_perplexity(top_PK)), 1.0),
        Metric("perplexity at one position, bottom codebook", float(place_perplexity(bottom_PK)), 1.0),
        Metric("dead codes, top codebook", float((top_K == 0).sum()), size - 1),
        Metric("dead codes, bottom codebook", float((bottom_K == 0).sum()), size - 1),
    ]


def _matching(
    trained: PretrainedRun, heldout: SplitSource, partner_n: NDArray[np.int64], what: str
) -> Metric:
    """ITM accuracy over every image with its own text and with that of sample `partner_n`, -1 for none."""
    n = len(heldout)
    hits_2n = torch.zeros(2, n)  # with the own text, with the other
    for batch, mask_B in batches_of_rank(heldout):
        real = max(1, int(mask_B.sum()))
        own = batch.position_B[:real].tolist()
        paired = [row for row, i in enumerate(own) if partner_n[i] >= 0]
        texts = [heldout.token_ids(i) for i in (*own, *(int(partner_n[own[row]]) for row in paired))]
        # an image is encoded once, and matched with both of its texts
        image_M = torch.tensor([*range(real), *paired])
        with measuring():
            memory = trained.model.encode(batch.image_or_feature[:real].to(trained.device))
            logits = trained.model.match(memory, image_M, PackedText.of(texts, trained.device))
        if mask_B.any():
            said_M = (logits.argmax(dim=1) == 1).cpu()
            hits_2n[0, own] = said_M[:real].float()
            hits_2n[1, [own[row] for row in paired]] = (~said_M[real:]).float()
    hits_2n = of_all_ranks(hits_2n, trained.device)
    hits: list[float] = []
    pairs: list[int] = []
    # in an order that no number of ranks changes: resamples are drawn by place
    for start in range(0, n, BATCH):
        own = list(range(start, min(start + BATCH, n)))
        paired = [i for i in own if partner_n[i] >= 0]
        hits += [*hits_2n[0, own].tolist(), *hits_2n[1, paired].tolist()]
        pairs += [*own, *paired]
    groups = patients(heldout, np.array(pairs))
    return mean(f"ITM accuracy, {what}", hits, 0.5, groups=groups)


def _hard_matching(trained: PretrainedRun, heldout: SplitSource) -> Metric:
    """ITM accuracy with the wrong text that ITC takes for the nearest, in place of a random one."""
    n, model = len(heldout), trained.model
    image_nQE, text_nE = torch.empty(0), torch.empty(0)
    for batch, mask_B in batches_of_rank(heldout):
        real = int(mask_B.sum())
        batch = first_pairs(to_device(batch, trained.device), max(1, real))
        with measuring():
            image_BQE = model.image_head(model.encode(batch.image_or_feature).query_BQD).float().cpu()
            text_BE = model.text_head(model.encode_text(batch.text)).float().cpu()
        if not len(image_nQE):
            image_nQE, text_nE = torch.zeros(n, *image_BQE.shape[1:]), torch.zeros(n, text_BE.shape[1])
        here = batch.position_B[:real].cpu()
        image_nQE[here], text_nE[here] = image_BQE[:real], text_BE[:real]
    image_nQE, text_nE = of_all_ranks(image_nQE, trained.device), of_all_ranks(text_nE, trained.device)
    if not (image_nQE.isfinite().all() and text_nE.isfinite().all()):
        # a run that diverged still gets its other numbers
        return Metric("ITM accuracy, hard pairs", None, 0.5, note="ITC features are not finite")
    partner_n = nearest_texts(image_nQE.numpy(), text_nE.numpy(), heldout.token_digests)
    return _matching(trained, heldout, partner_n, "hard pairs")


def nearest_texts(
    image_nQE: NDArray[np.float32], text_nE: NDArray[np.float32], token_digests: NDArray[np.int64]
) -> NDArray[np.int64]:
    """For each image the sample whose text ITC takes for the nearest, among those with other tokens than its
    own, [n]; -1 if the nearest `CANDIDATES` all have its own tokens.

    Args:
        image_nQE, text_nE: ITC features, L2-normalised.
        token_digests: [n] hashes of what the model reads.
    """
    top, _ = search(image_nQE, text_nE, min(CANDIDATES, len(text_nE)))
    differs_nK = token_digests[top.indices_QK] != token_digests[:, None]
    first_n = differs_nK.argmax(axis=1)
    nearest_n = top.indices_QK[np.arange(len(first_n)), first_n]
    return np.where(differs_nK.any(axis=1), nearest_n, -1)
