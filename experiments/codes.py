"""Which settings keep the codebooks of the paper's generator alive: pilots, then long runs of `full.yaml`'s.

Runs the commands that a user would type, with a small model on phantom and, with `--pairs`, on a table of
real pairs, and writes docs/codes.md. Finished runs are not repeated, so a stopped experiment resumes.

python -m experiments.codes --pairs rocov2-chest/pairs.csv
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from experiments.running import ROOT, mu, write_part
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import GeneratorConfig, ObjectivesConfig
from medunifier_cli.run.log import read_log

BATCH = 8
"""Pairs of a step, and so the largest perplexity at one position that a step's log can show."""
WARM = 100
"""Steps after which a codebook has to live."""
SIZES: dict[str, object] = {"code_width": 64, "base_width": 64, "residual_width": 32}
"""Keys of the generator that the experiment sets itself: what a CPU can pay. All others are `full.yaml`'s."""
VARIANTS: dict[str, dict[str, object]] = {
    "paper": {},
    "codebook from the first batch": {"revive_dead_codes": True, "revive_below": 0.0},
    "feature norm": {"feature_norm": "batch"},
    "revival": {"revive_dead_codes": True, "ema_decay": 0.9},
    "feature norm, revival, position scale 0.5": {
        "feature_norm": "batch", "revive_dead_codes": True, "ema_decay": 0.9, "position_scale": 0.5,
    },
}  # fmt: skip
"""What each pilot changes of the paper's generator, which is the recipe's default."""
LEARNED: dict[str, object] = {"nonlinear": "linear-relu", "upsample": "learned", "residual": "pre-activation"}
"""Adapters with VQ-VAE-2's layers; those of the authors' code are the default and `full.yaml`'s."""
SETTINGS: dict[str, object] = {
    # the generator is what is asked about: towers of two layers, and ITC alone with TIG, halve the time
    "model.vit.depth": 2, "model.vit.width": 64, "model.vit.heads": 2, "model.qformer.layers": 2,
    "model.qformer.width": 64, "model.qformer.heads": 2, "model.qformer.ffn_width": 128,
    "model.qformer.init_std": 0.125, "train.global_batch": BATCH, "train.threads": 1,
    "train.log_every": 10, "train.valid_every": 0, "train.valid_batches": 8, "train.checkpoint_every": 250,
    "train.tensorboard": False, "data.workers": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """A prepared data set: its name, what a recipe must set to train on it, and its held-out split."""

    name: str
    settings: Mapping[str, object]
    heldout: str


PHANTOM = Data("phantom", {}, "test")
PAIRS = Data(
    "pairs",
    {"data.dataset": "pairs", "data.sections": "[caption]", "text.vocabulary": 4000, "text.max_tokens": 32},
    "valid",
)


@dataclass(frozen=True)
class Training:
    """One run: a variant of the generator, data, steps and seed; measured on a held-out split."""

    variant: str
    generator: Mapping[str, object]
    data: Data
    split: str
    steps: int
    seed: int
    objectives: tuple[str, ...] = ("itc", "tig")

    @property
    def name(self) -> str:
        """Name of the run."""
        words = self.variant.replace(",", "").replace(" ", "-")
        return f"{self.data.name}-{self.steps}-{words}-seed{self.seed}"

    @property
    def command(self) -> list[str]:
        """Arguments of `mu`."""
        generator = {f"model.generator.{key}": value for key, value in self.generator.items()}
        weights = {f"objectives.{name}": int(name in self.objectives) for name in ObjectivesConfig.names()}
        settings = {**SETTINGS, **weights, **self.data.settings, "data.test": self.split, **generator,
                    "train.steps": self.steps, "train.seed": self.seed}  # fmt: skip
        options = [part for key, value in settings.items() for part in ("-o", f"{key}={_yaml(value)}")]
        return ["pretrain", "demo", "--name", self.name, *options]

    def result(self, home: Path) -> Path:
        """What the run measures at its end."""
        file = f"pretraining-{self.data.name}-{self.split}.json"
        return home / "runs" / self.name / "results" / file


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def small(generator: GeneratorConfig) -> dict[str, object]:
    """Every key of the generator: a recipe's values, at the sizes of this experiment."""
    return {**asdict(generator), **SIZES}


def plan(data: Sequence[Data], steps: int, seeds: int, pilot_steps: int) -> tuple[list[Training], ...]:
    """The pilots (seed 0, measured on the validation split), and the long runs of `full.yaml`'s generator:
    each seed with ITC and TIG, the same with our adapters, and the first one with all four losses too."""
    # the pilots of docs/codes.md had the adapters that were the default then
    paper = {**small(GeneratorConfig()), **LEARNED}
    pilots = [
        Training(name, {**paper, **changes}, one, "valid", pilot_steps, 0)
        for one in data
        for name, changes in VARIANTS.items()
    ]
    full = small(load_recipe("full").model.generator)
    long = [Training("full", full, one, one.heldout, steps, seed) for seed in range(seeds) for one in data]
    every = ObjectivesConfig.names()
    long += [
        Training("full, our adapters", {**full, **LEARNED}, one, one.heldout, steps, seed)
        for seed in range(seeds)
        for one in data
    ]
    long += [Training("full, all four losses", full, one, one.heldout, steps, 0, every) for one in data]
    return pilots, long


def train(run: Training, home: Path) -> None:
    """Train and measure, unless this was done; the log is beside the run."""
    if run.result(home).exists():
        return
    click.echo(f"{run.name}: log in {home / run.name}.log")
    with (home / f"{run.name}.log").open("a") as log:
        mu(run.command, home, log.fileno())
    click.echo(f"{run.name}: done")


def prepare(data: Sequence[Data], pairs: Path | None, home: Path) -> None:
    """Shards of 64 x 64 pixels; a prepared folder stays as it is."""
    for one in data:
        if not (home / "data" / "shards" / one.name / "manifest.json").exists():
            table = ["table", "--raw", str(pairs), "--name", one.name] if one is PAIRS else [one.name]
            mu(["prepare", *table, "--size", "64"], home)


def row(run: Training, home: Path) -> list[str] | None:
    """A run's row, or None where it is not finished.

    Codes in use and perplexities are top / bottom, over the whole held-out split; the last column is the
    lowest perplexity at one position of any logged training step after the first hundred.
    """
    if not run.result(home).exists():
        return None
    metrics = {metric["name"]: metric for metric in json.loads(run.result(home).read_text())["metrics"]}

    def both(name: str, show: str, level: Any = lambda value: value) -> str:
        return " / ".join(
            format(level(metrics[f"{name}, {codebook} codebook"]["value"]), show)
            for codebook in ("top", "bottom")
        )

    lines = [line for line in read_log(home / "runs" / run.name / "log.jsonl") if line["event"] == "train"]
    lowest = " / ".join(
        f"{min(line[f'place_perplexity_{level}'] for line in lines if line['step'] > WARM):.2f}"
        for level in ("top", "bottom")
    )
    quality = metrics["reconstruction PSNR"]
    size = int(run.generator["codebook_size"])  # type: ignore[call-overload]
    return [
        run.data.name, run.variant, str(run.seed), f"{quality['value']:.1f} ({quality['floor']:.1f})",
        both("dead codes", ".0f", lambda dead: size - dead), both("perplexity", ".0f"),
        both("perplexity at one position", ".1f"), lowest,
    ]  # fmt: skip


COLUMNS = (
    "data", "generator", "seed", "PSNR, dB (mean image)", "codes in use", "perplexity",
    "perplexity at one position", "lowest in training",
)  # fmt: skip


def table(runs: Sequence[Training], home: Path) -> str:
    """A Markdown table with a row for each finished run."""
    rows = [cells for run in runs if (cells := row(run, home)) is not None]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows))


def page(pilots: Sequence[Training], long: Sequence[Training], home: Path) -> str:
    """The generated part of docs/codes.md."""
    return "\n\n".join((
        f"{long[0].steps:,} steps with the generator of `full.yaml`, measured on the held-out split:",
        table(long, home),
        f"{pilots[0].steps:,} steps, changes of the paper's generator, measured on the validation split:",
        table(pilots, home),
    ))  # fmt: skip


@click.command()
@click.option("--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "codes", show_default=True)
@click.option("--pairs", type=click.Path(exists=True, path_type=Path), help="Table of real pairs; see above.")
@click.option("--steps", type=click.IntRange(min=WARM + 1), default=2000, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--pilot-steps", type=click.IntRange(min=WARM + 1), default=2000, show_default=True)
@click.option("--only", default="", help="Train only the runs whose names begin with this.")
@click.option("--together", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at a time.")
def main(
    home: Path, pairs: Path | None, steps: int, seeds: int, pilot_steps: int, only: str, together: int
) -> None:
    """Train what is missing, then print the tables and put them into docs/codes.md."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    data = [PHANTOM] + ([PAIRS] if pairs else [])
    prepare(data, pairs.resolve() if pairs else None, home)
    pilots, long = plan(data, steps, seeds, pilot_steps)
    with ThreadPoolExecutor(together) as pool:
        # the long runs first, seed by seed: a stopped experiment has what the page is for
        wanted = [run for run in (*long, *pilots) if run.name.startswith(only)]
        for job in [pool.submit(train, run, home) for run in wanted]:
            job.result()
    text = page(pilots, long, home)
    click.echo(text)
    write_part("codes", text)


if __name__ == "__main__":
    main()
