"""How well priors do what a prompt asks for, over guidance and temperature: one command, one picture.

For each run of priors, guidance and temperature, images are drawn for the prompts of the classes and judged
by a classifier fine-tuned on real images, by the model's own ITM and by that of a model of another seed, and
for variety. Held-out real images and their reconstructions are the ceilings. Writes docs/adherence.md and
docs/adherence.svg; settings that are measured are not repeated.

python -m experiments.adherence --priors prior-demo --classifier probe-demo-1 --other demo-seed-1 --write
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from experiments.curves import Panel, picture
from experiments.judging import OWN, Judge, Values, decode_all, draw, markdown, once, open_judge, row_of
from experiments.levels import cases_of
from experiments.running import ROOT, write_part
from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.checkpoint.priors import FittedPriors, restore_priors
from medunifier_cli.evaluate.synthesis.requests import read_requests
from medunifier_cli.model.sampling import Draws
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run


@dataclass(frozen=True)
class Setting:
    """One set of images of one run of priors."""

    priors: str
    guidance: float
    temperature: float
    best_of: int
    seed: int

    @property
    def curve(self) -> str:
        """Name of the curve that it is a point of; points are by guidance."""
        kept = f", best of {self.best_of}" if self.best_of > 1 else ""
        return f"{self.priors}, temperature {self.temperature:g}{kept}"

    @property
    def file(self) -> str:
        """What its numbers are kept under."""
        return f"{self.priors}-g{self.guidance:g}-t{self.temperature:g}-k{self.best_of}-s{self.seed}"


def measure(judge: Judge, fitted: FittedPriors, setting: Setting, prompts: str, images: int) -> Values:
    """Draw images for the prompts of the classes, in turn, and judge them."""
    data = fitted.pretrained.recipe.data
    requests = read_requests("", prompts, prepared_dataset(data.dataset, data.shards))
    asked = [requests[number % len(requests)] for number in range(images)]
    draws = Draws(setting.seed, setting.temperature, guidance=setting.guidance)
    grey_nSS = draw(fitted, asked, draws, setting.best_of)
    class_n = np.array([judge.classes.index(request.name) for request in asked])
    return judge_of(judge, fitted.pretrained).measure(
        grey_nSS, class_n, [request.prompt for request in asked]
    )


def judge_of(judge: Judge, pretrained: PretrainedRun) -> Judge:
    """A judge whose "own" ITM is that of this model."""
    return replace(judge, matchers={**judge.matchers, OWN: pretrained})


def ceilings(judge: Judge, pretrained: PretrainedRun, split: str) -> dict[str, Values]:
    """Held-out images of one class with their own texts, and the same through the codes of a model."""
    cases, judge = cases_of(pretrained, split), judge_of(judge, pretrained)
    shown = {"real": cases.grey_nSS,
             "reconstructed": decode_all(pretrained, cases.top_nTT, cases.bottom_nGG)}  # fmt: skip
    return {name: judge.measure(grey_nSS, cases.class_n, cases.texts) for name, grey_nSS in shown.items()}


def panels(judge: Judge, found: Mapping[Setting, Values], top: Mapping[str, Values]) -> list[Panel]:
    """Of the picture: each measure over guidance, with what reconstructed images reach as a line."""

    def worst(values: Values) -> list[float]:
        return min(values[f"class, {name}"] for name in judge.classes if f"class, {name}" in values)

    measures = {"class": "class asked for is seen", "worst": "the same, worst class"}
    measures |= {f"match, {name}": f"match by ITM, {name}" for name in judge.matchers}
    measures |= {"Fréchet": "encoder Fréchet distance", "recall": "recall", "pairwise": "pairwise distance"}
    out = []
    for key, title in measures.items():
        curves: dict[str, list[tuple[float, float, float, float]]] = {}
        for setting, values in found.items():
            value, *ends = worst(values) if key == "worst" else values[key]
            low, high = ends or (value, value)
            curves.setdefault(setting.curve, []).append((setting.guidance, value, low, high))
        line = worst(top["reconstructed"]) if key == "worst" else top["reconstructed"][key]
        out.append(Panel(title, {name: sorted(points) for name, points in curves.items()}, line[0]))
    return out


def table(judge: Judge, found: Mapping[Setting, Values], top: Mapping[str, Values]) -> str:
    """A row for each set of images, the ceilings first."""
    matches = [f"match, {name}" for name in judge.matchers]
    columns = ["class", *(f"class, {name}" for name in judge.classes), *matches,
               "Fréchet", "precision", "recall", "pairwise"]  # fmt: skip
    titles = ["images", "class seen", *judge.classes, *(f"match by {name} ITM" for name in judge.matchers),
              "Fréchet, one class", "precision", "recall", "pairwise distance"]  # fmt: skip
    rows = [row_of(name, values, columns) for name, values in top.items()]
    rows += [
        row_of(f"{setting.curve}, guidance {setting.guidance:g}", values, columns)
        for setting, values in found.items()
    ]
    return markdown(titles, rows)


@click.command()
@click.option("--priors", multiple=True, required=True, help="Run of priors; may be given several times.")
@click.option("--classifier", required=True, help="Run of `mu finetune` that judges.")
@click.option("--other", multiple=True, help="Pre-training run of another seed, whose ITM judges too.")
@click.option(
    "--features", default="", help="Pre-training run for the distances; by default the priors' own."
)
@click.option("--prompts", default="report", show_default=True, help="Prompt set of the data set.")
@click.option("--split", default="valid", show_default=True, help="Real images of the ceilings.")
@click.option("--guidance", type=float, multiple=True, default=(1.0, 1.5, 2.0, 3.0), show_default=True)
@click.option("--temperature", type=float, multiple=True, default=(0.8, 1.0), show_default=True)
@click.option("--best-of", type=int, multiple=True, default=(1,), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--images", type=int, default=250, show_default=True, help="Number of images of each setting.")
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "adherence", show_default=True,
    help="Folder of what was measured.",
)  # fmt: skip
@click.option("--write", is_flag=True, help="Write the table into docs/adherence.md, and docs/adherence.svg.")
def main(
    priors: Sequence[str], classifier: str, other: Sequence[str], features: str, prompts: str, split: str,
    guidance: Sequence[float], temperature: Sequence[float], best_of: Sequence[int], seed: int, images: int,
    home: Path, write: bool,
) -> None:  # fmt: skip
    """Measure what is missing, then print the table and draw the picture."""
    fitted = {name: restore_priors(Run(find_run(name))) for name in priors}
    others = {f"{name}'s": restore(Run(find_run(name))) for name in other}
    own = next(iter(fitted.values())).pretrained
    measuring = restore(Run(find_run(features))) if features else own
    judge = open_judge(measuring, {OWN: own, **others}, classifier)
    top: dict[str, Values] = {}
    found = {}
    for name, one in fitted.items():
        path = home / f"{judge.identity}-{one.pretrained.identity}-{split}.json"
        both = once(path, partial(ceilings, judge, one.pretrained, split))
        suffix = "" if one.pretrained.identity == own.identity else f", model of {name}"
        top.setdefault("real", both["real"])
        top.setdefault(f"reconstructed{suffix}", both["reconstructed"])
        for setting in (
            Setting(name, scale, heat, kept, seed)
            for kept in best_of
            for heat in temperature
            for scale in guidance
        ):
            path = home / f"{judge.identity}-{one.identity}-{setting.file}-{prompts}-{images}.json"
            found[setting] = once(path, partial(measure, judge, one, setting, prompts, images))
            click.echo(f"{setting.file}: class seen {found[setting]['class'][0]:.3f}", err=True)
    text = table(judge, found, top)
    click.echo(text)
    drawn = picture(panels(judge, found, top), "guidance", "reconstructed")
    (home / "adherence.svg").write_text(drawn, encoding="utf-8")
    if write:
        write_part("adherence", text)
        (ROOT / "docs" / "adherence.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
