"""Which level of codes loses what a prompt asks for: true codes of one level, sampled codes of the other.

Takes images of one class each from the validation split with the texts they have, and judges them as they
are, through their codes, with one level sampled from the priors given the text (and, for the bottom, the true
top), and with both sampled. Writes docs/levels.md; cases that are measured are not repeated.

python -m experiments.levels --priors prior-demo --priors masked --classifier probe-demo-1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.judging import OWN, Judge, Values, decode_all, markdown, once, open_judge, row_of
from experiments.running import ROOT, write_part
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import FittedPriors, restore_priors
from medunifier_cli.evaluate.benchmark import open_benchmark
from medunifier_cli.evaluate.codes import encode
from medunifier_cli.evaluate.synthesis.requests import ImageRequest
from medunifier_cli.evaluate.synthesis.synthesis import sampler
from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.contract import TextStates
from medunifier_cli.prior.masked.network import to_cells, to_maps
from medunifier_cli.prior.masked.prior import MaskedPrior
from medunifier_cli.prior.sampling import Inputs, sample
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class Cases:
    """Images of exactly one class, with their texts and codes."""

    grey_nSS: NDArray[np.uint8]
    class_n: NDArray[np.int64]
    texts: list[str]
    top_nTT: Tensor
    bottom_nGG: Tensor


def cases_of(pretrained: PretrainedRun, split: str, most: int = 0) -> Cases:
    """The images of a split that have one class and a text; `most` limits them, 0 takes all."""
    source = open_benchmark(pretrained, split=split).source
    numbers = np.flatnonzero(source.labels >= 0)
    numbers = numbers[: most or len(numbers)]
    longest = pretrained.recipe.text.max_tokens
    texts = [source.text(int(number)) for number in numbers]
    fits = [len(pretrained.tokenizer.encode(text, longest + 1)) <= longest for text in texts]
    numbers, texts = numbers[fits], [text for text, fit in zip(texts, fits, strict=True) if fit]
    image_n1SS = source.images(numbers)
    top, bottom = encode(pretrained, image_n1SS, texts)
    return Cases(image_n1SS[:, 0].numpy(), source.labels[numbers], texts, top, bottom)


def shuffled(cases: Cases, seed: int = 0) -> Tensor:
    """int64 [n], for each image another one of another class, drawn at random."""
    random, other = np.random.default_rng(seed), []
    for name in cases.class_n:
        other.append(random.choice(np.flatnonzero(cases.class_n != name)))
    return torch.tensor(other)


def sampled(fitted: FittedPriors, cases: Cases, draws: Draws) -> dict[str, tuple[Tensor, Tensor]]:
    """Both levels sampled for the texts of the cases, and the bottom sampled under their true tops."""
    prompted = sampler(fitted, [ImageRequest(text, "a text of the split") for text in cases.texts], draws)
    numbers = range(len(cases.texts))
    both = prompted.codes(numbers)
    prior, texts = fitted.prior, prompted.texts
    if isinstance(prior, MaskedPrior):
        cell_nPS = to_cells(cases.top_nTT, cases.bottom_nGG)
        cell_nPS[:, :, 1:] = prior.network.hidden
        bottom = to_maps(prior.fill(cell_nPS, numbers, draws, texts))[1]
    else:
        assert not isinstance(texts, TextStates)
        size = tuple(cases.bottom_nGG.shape[1:])
        bottom = sample(prior.bottom, size, numbers, draws, Inputs(texts, cases.top_nTT))  # type: ignore[arg-type]
    return {
        "true top, sampled bottom": (cases.top_nTT, bottom),
        "sampled top, true bottom": (both[0], cases.bottom_nGG),
        "both sampled": both,
    }


def measure_real(judge: Judge, cases: Cases) -> dict[str, Values]:
    """What needs no prior: the images, their reconstructions, and levels of two images mixed."""
    other = shuffled(cases)
    codes = {
        "reconstructed": (cases.top_nTT, cases.bottom_nGG),
        "true top, bottom of another class": (cases.top_nTT, cases.bottom_nGG[other]),
        "top of another class, true bottom": (cases.top_nTT[other], cases.bottom_nGG),
    }
    values = {"real": judge.measure(cases.grey_nSS, cases.class_n, cases.texts)}
    return values | {
        name: judge.measure(decode_all(judge.pretrained, *maps), cases.class_n, cases.texts)
        for name, maps in codes.items()
    }


def measure_sampled(judge: Judge, fitted: FittedPriors, cases: Cases, draws: Draws) -> dict[str, Values]:
    """The three sets that a prior has drawn."""
    return {
        name: judge.measure(decode_all(judge.pretrained, *maps), cases.class_n, cases.texts)
        for name, maps in sampled(fitted, cases, draws).items()
    }


def table(found: Sequence[tuple[str, dict[str, Values]]], classes: Sequence[str]) -> str:
    """A row for each set of images."""
    columns = ["class", *(f"class, {name}" for name in classes), "Fréchet", "Fréchet to all", "recall"]
    rows = [
        row_of(f"{heading}: {name}" if heading else name, values, columns)
        for heading, sets in found
        for name, values in sets.items()
    ]
    titles = ["images", "class seen", *classes, "Fréchet, one class", "Fréchet, all", "recall"]
    return markdown(titles, rows)


@click.command()
@click.option("--priors", multiple=True, required=True, help="Run of priors; may be given several times.")
@click.option("--classifier", required=True, help="Run of `mu finetune` that judges.")
@click.option("--split", default="valid", show_default=True)
@click.option("--guidance", type=float, multiple=True, default=(1.0, 2.0), show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--images", type=int, default=0, help="Images to take at most; 0 for all.")
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "levels", show_default=True,
    help="Folder of what was measured.",
)  # fmt: skip
@click.option("--write", is_flag=True, help="Put the table into docs/levels.md.")
def main(
    priors: Sequence[str], classifier: str, split: str, guidance: Sequence[float], temperature: float,
    seed: int, images: int, home: Path, write: bool,
) -> None:  # fmt: skip
    """Measure what is missing, then print the table."""
    fitted = [restore_priors(Run(find_run(name))) for name in priors]
    judge = open_judge(fitted[0].pretrained, {OWN: fitted[0].pretrained}, classifier)
    cases = cases_of(judge.pretrained, split, images)
    for name, one in zip(priors, fitted, strict=True):
        if one.pretrained.identity != judge.pretrained.identity:
            raise click.UsageError(f"{name} and {priors[0]} are priors of two models, whose codes differ")
    of = f"{judge.identity}-{split}-{len(cases.texts)}"
    found = [("", once(home / f"{of}-real.json", lambda: measure_real(judge, cases)))]
    for name, one in zip(priors, fitted, strict=True):
        for scale in guidance:
            draws = Draws(seed, temperature, 0, 1.0, scale)
            path = home / f"{of}-{name}-{one.identity}-g{scale:g}-t{temperature:g}-s{seed}.json"
            sets = once(path, lambda one=one, draws=draws: measure_sampled(judge, one, cases, draws))  # type: ignore[misc]
            found.append((f"{name}, guidance {scale:g}", sets))
            click.echo(f"{name}, guidance {scale:g}: done", err=True)
    text = table(found, judge.classes)
    click.echo(text)
    if write:
        write_part("levels", text)


if __name__ == "__main__":
    main()
