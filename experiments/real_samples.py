"""What priors over the codes of real radiographs draw: measures beside those of real images, and a sheet.

For prompts of common findings, and for the captions of held-out images, images are drawn and judged as in
`experiments.adherence`, less the classifier, as captions have no classes. Ceilings are held-out real images,
as they are and through their codes; floors are the same with the caption of another image. The sheet has
samples of each prompt, each beside the training image nearest to it; it shows real films, so it stays in
`--home`.

python -m experiments.real_samples --priors NAME --other RUN --write
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from experiments.judging import OWN, Judge, Values, decode_all, draw, markdown, once, open_judge, row_of
from experiments.running import ROOT, write_part
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.checkpoint.priors import FittedPriors, restore_priors
from medunifier_cli.evaluate.benchmark import open_benchmark
from medunifier_cli.evaluate.codes import encode
from medunifier_cli.evaluate.synthesis.image_sets import SplitImages, encoder_features, query_means
from medunifier_cli.evaluate.synthesis.requests import ImageRequest
from medunifier_cli.model.sampling import Draws
from medunifier_cli.page.pictures import Captioned, save_sheet
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run
from medunifier_cli.scores.privacy import correlation, nearest

PROMPTS = (
    "Chest X-ray showing bilateral pleural effusion.",
    "Chest X-ray showing a right-sided pleural effusion.",
    "Chest X-ray showing a left pneumothorax.",
    "Chest X-ray showing cardiomegaly.",
    "Chest X-ray showing consolidation in the right lower lobe.",
    "Chest X-ray showing bilateral infiltrates.",
    "Chest X-ray showing pulmonary edema.",
    "Chest X-ray showing a mass in the left upper lobe.",
    "Normal chest X-ray.",
    "Lateral chest X-ray.",
)
"""Common findings of the captions of ROCOv2's chest radiographs, in their words."""
CANDIDATES = 10
"""Training images, nearest by features, whose pixels are compared, as by `mu score --copies`."""
SHOWN = 4
"""Samples of each prompt on the sheet."""


def captions_of(pretrained: PretrainedRun, split: str, most: int) -> dict[int, str]:
    """The first captions of a split that the model can read whole, by sample."""
    source = open_benchmark(pretrained, split=split).source
    longest = pretrained.recipe.text.max_tokens
    texts = {number: source.text(number) for number in range(len(source))}
    whole = [n for n, text in texts.items() if len(pretrained.tokenizer.encode(text, longest + 1)) <= longest]
    return {number: texts[number] for number in whole[:most]}


def real_rows(judge: Judge, split: str, captions: Mapping[int, str]) -> dict[str, Values]:
    """Held-out images, as they are and through their codes, with their own captions and with others."""
    texts = list(captions.values())
    # half of the list further on: an image and its neighbour in a table may come from one article
    others = [texts[(i + len(texts) // 2) % len(texts)] for i in range(len(texts))]
    image_n1SS = open_benchmark(judge.pretrained, split=split).source.images(np.array(list(captions)))
    coded = decode_all(judge.pretrained, *encode(judge.pretrained, image_n1SS, texts))
    one_n = np.zeros(len(texts), np.int64)  # captions have no classes: distances are between any two images
    rows = {}
    for name, grey_nSS in {"real": image_n1SS[:, 0].numpy(), "reconstructed": coded}.items():
        rows[name] = judge.measure(grey_nSS, one_n, texts)
        rows[f"{name}, captions of other images"] = judge.measure(grey_nSS, one_n, others)
    return rows


def drawn_row(
    judge: Judge, fitted: FittedPriors, texts: Sequence[str], draws: Draws, best_of: int, repeated: bool
) -> Values:
    """One image for each text, judged; of repeated texts, pairwise distances are within a text."""
    grey_nSS = draw(fitted, [ImageRequest(text, "a caption") for text in texts], draws, best_of)
    unique = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    asked_n = np.array([unique[text] if repeated else 0 for text in texts])
    return judge.measure(grey_nSS, asked_n, texts)


def nearest_training(
    pretrained: PretrainedRun, grey_nSS: NDArray[np.uint8]
) -> list[tuple[NDArray[np.uint8], float]]:
    """Of each image the training image nearest to it [S, S], and the correlation of their pixels."""
    train = pretrained.recipe.data.train
    images = SplitImages(open_benchmark(pretrained, split=train, need_text=False), train)
    feature_tD = encoder_features(pretrained, images)
    candidates_nC, _ = nearest(query_means(pretrained, grey_nSS), feature_tD, CANDIDATES)
    found = []
    for grey_SS, candidates_C in zip(grey_nSS, candidates_nC, strict=True):
        others_CSS = images.pick(candidates_C.tolist())
        alike_C = correlation(grey_SS, others_CSS)
        found.append((others_CSS[int(alike_C.argmax())], float(alike_C.max())))
    return found


def sheet(fitted: FittedPriors, draws: Draws, best_of: int, path: Path) -> list[float]:
    """Write samples of each prompt, each before its nearest training image.

    Returns:
        The pixel correlation of each pair.
    """
    asked = [ImageRequest(prompt, "a prompt") for prompt in PROMPTS for _ in range(SHOWN)]
    grey_nSS = draw(fitted, asked, draws, best_of)
    beside = nearest_training(fitted.pretrained, grey_nSS)
    tiles = []
    for grey_SS, request, (other_SS, alike) in zip(grey_nSS, asked, beside, strict=True):
        tiles.append(Captioned(grey_SS / 255, request.prompt))
        tiles.append(Captioned(other_SS / 255, f"nearest training image, correlation {alike:.2f}"))
    in_row = 2 * SHOWN
    save_sheet([tiles[first : first + in_row] for first in range(0, len(tiles), in_row)], path)
    return [alike for _, alike in beside]


def table(matchers: Mapping[str, object], rows: Mapping[str, Values]) -> str:
    """A row for each set of images."""
    columns = [*(f"match, {name}" for name in matchers), "Fréchet", "precision", "recall", "pairwise"]
    matches = [f"match by {name} ITM" for name in matchers]
    titles = ["images", *matches, "encoder Fréchet distance", "precision", "recall", "pairwise distance"]
    return markdown(titles, [row_of(name, values, columns) for name, values in rows.items()])


@click.command()
@click.option("--priors", required=True, help="Run of priors, fitted on a model of real pairs.")
@click.option("--other", multiple=True, help="Pre-training run of another seed, whose ITM judges too.")
@click.option("--split", default="valid", show_default=True, help="Real images of the ceilings.")
@click.option("--guidance", type=float, multiple=True, default=(1.0, 2.0), show_default=True)
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--best-of", type=int, multiple=True, default=(1, 4), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--images", type=int, default=250, show_default=True, help="Number of images of each row.")
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "real-samples", show_default=True,
    help="Folder of what was measured, and of the sheet.",
)  # fmt: skip
@click.option("--write", is_flag=True, help="Write the table into docs/real-samples.md.")
def main(
    priors: str, other: Sequence[str], split: str, guidance: Sequence[float], temperature: float,
    best_of: Sequence[int], seed: int, images: int, home: Path, write: bool,
) -> None:  # fmt: skip
    """Measure what is missing, then print the table and write the sheet."""
    fitted = restore_priors(Run(find_run(priors)))
    others = {f"{name}'s": restore(Run(find_run(name))) for name in other}
    judge = open_judge(fitted.pretrained, {OWN: fitted.pretrained, **others})
    captions = captions_of(fitted.pretrained, split, images)
    of = f"{judge.identity}-{split}-{images}"
    rows: dict[str, Values] = once(home / f"{of}.json", partial(real_rows, judge, split, captions))
    prompted = [PROMPTS[number % len(PROMPTS)] for number in range(images)]
    for kept in best_of:
        for scale in guidance:
            draws = Draws(seed, temperature, guidance=scale)
            setting = f"guidance {scale:g}" + (f", best of {kept}" if kept > 1 else "")
            for kind, texts in (("captions", list(captions.values())), ("prompts", prompted)):
                name = f"{of}-{fitted.identity}-{kind}-g{scale:g}-t{temperature:g}-k{kept}-s{seed}.json"
                rows[f"drawn for {kind}, {setting}"] = once(
                    home / name, partial(drawn_row, judge, fitted, texts, draws, kept, kind == "prompts")
                )
    text = table(judge.matchers, rows)
    click.echo(text)
    draws = Draws(seed, temperature, guidance=max(guidance))
    found = sheet(fitted, draws, max(best_of), home / "sheet.png")
    click.echo(
        f"{home / 'sheet.png'}: pixel correlation with the nearest training image at most {max(found):.2f}"
    )
    if write:
        write_part("real_samples", text)


if __name__ == "__main__":
    main()
