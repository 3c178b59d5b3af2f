"""The paper's ablation (table 6 and appendix table 1) on phantom: seven recipes, three seeds.

Runs the commands that a user would type, two runs at a time on one thread each, and writes docs/ablation.md
from the results. Finished runs are not repeated, so a stopped ablation resumes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click

from experiments.running import ROOT, mu, write_part
from medunifier_cli.recipe.load import load_recipe

# in the order of the paper's IDs
RECIPES = ("itc", "itc-itm", "itc-itm-itg", "itc-itm-tig", "full", "tig-0.8", "tig-1.2")
DECODER = {"model.generator.base_width": 256, "model.generator.rate_scale": 8.0,
           "model.generator.position_scale": 0.5}  # fmt: skip
"""The demo's decoder when docs/ablation.md was measured; the demo's own has become smaller since."""
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % quantile of Student's t by the number of seeds."""


@dataclass(frozen=True)
class Figure:
    """A column: its title, and where its value is in a run's result files."""

    title: str
    file: str
    metric: str
    scale: float = 100.0


FIGURES = (
    Figure("mAP@1 i→t", "retrieval-phantom", "image to text, map@1"),
    Figure("mAP@5 i→t", "retrieval-phantom", "image to text, map@5"),
    Figure("mAP@1 t→i", "retrieval-phantom", "text to image, map@1"),
    Figure("zero-shot ACC", "zeroshot-phantom", "zero-shot accuracy"),
    Figure("probe AUROC 1 %", "probe-0.01/finetune-phantom", "fine-tuned auroc"),
    Figure("probe AUROC 100 %", "probe-1/finetune-phantom", "fine-tuned auroc"),
    Figure("ITM ACC", "pretraining-phantom", "ITM accuracy, random pairs"),
    Figure("report micro-F1", "report-phantom", "finding micro-F1"),
    Figure("PSNR, dB", "pretraining-phantom", "reconstruction PSNR", 1.0),
)
DIFFERENCES = (
    ("TIG added to ITC + ITM", "itc-itm-tig", "itc-itm"),
    ("TIG added to ITC + ITM + ITG", "full", "itc-itm-itg"),
    ("ITG added to ITC + ITM", "itc-itm-itg", "itc-itm"),
    ("ITG added to ITC + ITM + TIG", "full", "itc-itm-tig"),
)


def weights_of(recipe: str) -> dict[str, float]:
    """Objective -> weight that a shipped recipe sets."""
    objectives = load_recipe(recipe).objectives
    return {name: getattr(objectives, name) for name in ("itc", "itm", "itg", "tig")}


def run_name(recipe: str, seed: int) -> str:
    """Name of a pre-training run."""
    return f"{recipe}-seed{seed}"


def train_and_measure(recipe: str, seed: int, steps: int, home: Path) -> None:
    """One run: `mu pretrain`, then each verb that its objectives allow."""
    name, weights = run_name(recipe, seed), weights_of(recipe)
    done = home / f"{name}.done"
    if done.exists() and done.read_text() == str(steps):
        return
    fresh = ["--fresh"] if done.exists() else []  # measured at another number of steps
    click.echo(f"{name}: {steps} steps, log in {home / name}.log")
    settings = {**{f"objectives.{key}": value for key, value in weights.items()}, **DECODER,
                "train.seed": seed, "train.steps": steps, "train.valid_every": steps,
                "train.checkpoint_every": steps, "train.tensorboard": "false"}  # fmt: skip
    options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
    commands = [["pretrain", "demo", "--name", name, *fresh, *options], ["retrieve", "--run", name]]
    commands.append(["zeroshot", "--run", name])
    for share in ("0.01", "1"):
        probe = f"{name}-probe-{share}"
        chosen = ["-o", f"data.fraction={share}", "-o", f"train.seed={seed}"]
        commands.append(["finetune", "probe-demo", "--run", name, "--name", probe, *fresh, *chosen])
    if weights["itg"]:
        commands.append(["report", "--run", name])
    with (home / f"{name}.log").open("a") as log:
        for command in commands:
            mu(command, home, log.fileno())
    done.write_text(str(steps))
    click.echo(f"{name}: done")


def measured(home: Path, recipe: str, seed: int, figure: Figure) -> float | None:
    """A run's figure, or None where its objectives do not give one."""
    *probe, start = figure.file.split("/")
    folder = home / "runs" / "-".join([run_name(recipe, seed), *probe]) / "results"
    for path in sorted(folder.glob(f"{start}-*.json")):
        for metric in json.loads(path.read_text())["metrics"]:
            if metric["name"] == figure.metric and metric["value"] is not None:
                return float(metric["value"]) * figure.scale
    return None


def interval(values: Sequence[float | None], signed: bool = False) -> str:
    """Mean and the half width of its 95 % interval over seeds (Student's t)."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = statistics.fmean(known)
    text = f"{mean:+.1f}" if signed else f"{mean:.1f}"
    if len(known) < 2:
        return text
    return f"{text} ± {STUDENT[len(known)] * statistics.stdev(known) / math.sqrt(len(known)):.1f}"


def table(heading: str, rows: Sequence[tuple[str, Callable[[Figure], str]]]) -> str:
    """A Markdown table with a column for each figure."""
    lines = [
        "| " + " | ".join((heading, *(figure.title for figure in FIGURES))) + " |",
        "|---" * (len(FIGURES) + 1) + "|",
    ]
    lines += ["| " + " | ".join((name, *(cell(figure) for figure in FIGURES))) + " |" for name, cell in rows]
    return "\n".join(lines)


def page(home: Path, seeds: int, steps: int) -> str:
    """The generated part of docs/ablation.md."""

    def mean(recipe: str) -> Callable[[Figure], str]:
        return lambda figure: interval([measured(home, recipe, seed, figure) for seed in range(seeds)])

    def gain(more: str, less: str) -> Callable[[Figure], str]:
        def cell(figure: Figure) -> str:
            pairs = [[measured(home, which, s, figure) for which in (more, less)] for s in range(seeds)]
            return interval([a - b for a, b in pairs if a is not None and b is not None], signed=True)

        return cell

    def label(recipe: str) -> str:
        weights = weights_of(recipe)
        parts = [name.upper() if w == 1 else f"{w:g} {name.upper()}" for name, w in weights.items() if w]
        return f"{RECIPES.index(recipe) + 1}: {' '.join(parts)}"

    return "\n\n".join((
        f"{seeds} seeds, {steps} steps of 32 pairs each; mean over seeds ± half of its 95 % interval"
        "\n(Student's t), in percent unless stated otherwise.",
        table("ID", [(label(recipe), mean(recipe)) for recipe in RECIPES]),
        "Differences between runs of the same seed:",
        table("", [(name, gain(more, less)) for name, more, less in DIFFERENCES]),
    ))  # fmt: skip


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "ablation", show_default=True
)
@click.option("--seeds", type=click.IntRange(2, 5), default=3, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--together", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at a time.")
def main(home: Path, seeds: int, steps: int, together: int) -> None:
    """Train what is missing, then print the table and put it into docs/ablation.md."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    mu(["prepare", "phantom", "--size", "64"], home)
    with ThreadPoolExecutor(together) as pool:
        # seed by seed, so that a stopped ablation has whole tables
        jobs = [
            pool.submit(train_and_measure, recipe, seed, steps, home)
            for seed in range(seeds)
            for recipe in RECIPES
        ]
        for job in jobs:
            job.result()
    text = page(home, seeds, steps)
    click.echo(text)
    write_part("ablation", text)


if __name__ == "__main__":
    main()
