"""Augmentation of a data set that the generator never saw: 10 % of real films, alone and with synthetic ones.

Runs the commands that a user would type and writes docs/augmentation.md from the results. Commands that are
done are not repeated, so a stopped experiment resumes.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from experiments.ablation import interval
from experiments.running import ROOT, mu, write_part
from medunifier_cli.scores.bootstrap import Interval, intervals
from medunifier_cli.scores.classification import auroc

SIZE = "64"
"""Edge of all images in pixels, that of the demo's model."""
FRACTION = "0.1"
SYNTHETIC = 224
"""Films for each seed, half of each class: twice the real ones."""
CLASS = "pneumonia"
PROMPTS = """\
pneumonia: ["Chest X-ray showing pneumonia.", "Chest radiograph of a child with consolidation of the lung."]
no pneumonia: ["Normal chest X-ray.", "Chest radiograph of a child with clear lungs."]
"""
GENERATOR = {
    "data.dataset": "rocov2-chest", "data.sections": "[caption]", "data.test": "", "data.workers": 0,
    "text.vocabulary": 4000, "text.max_tokens": 48, "train.checkpoint_every": 100,
    "train.tensorboard": "false",
    # the demo's decoder when docs/augmentation.md was measured; the demo's own has become smaller since
    "model.generator.base_width": 256, "model.generator.rate_scale": 8.0,
    "model.generator.position_scale": 0.5,
}  # fmt: skip
"""Settings of the demo's recipe that captions of articles need, and those that keep its figures."""
PRIORS = {"train.steps": 150, "train.checkpoint_every": 75}
CLASSIFIER = {
    "data.dataset": "pneumonia", "data.fraction": FRACTION, "data.workers": 0, "model.head": "linear",
    "model.loss": "cross_entropy", "model.metric": "auroc", "train.steps": 120, "train.valid_every": 20,
    "train.global_batch": 32, "train.checkpoint_every": 60, "train.tensorboard": "false",
}  # fmt: skip
"""Of both arms: as many steps and films a step with synthetic films as without."""
AUROC = "fine-tuned auroc"
ARMS = {"real": "real films alone", "both": "real and synthetic films"}


class Experiment:
    """The commands of one experiment.

    Args:
        home: folder of data, runs, tables and marks of what is done.
        pairs: table of image-text pairs, `image, split, caption`.
        films: table of labelled films, `image, patient, pneumonia`.
        steps: of the generator's pre-training.
    """

    def __init__(self, home: Path, pairs: Path, films: Path, steps: int) -> None:
        self.home, self.pairs, self.films, self.steps = home, pairs.resolve(), films.resolve(), steps
        self.done = home / "done.txt"

    def mu(self, *words: object) -> None:
        """Run a verb in the experiment's own data and run folders, on one thread, unless it is done."""
        line = " ".join(map(str, words))
        if self.done.exists() and line in self.done.read_text().splitlines():
            return
        click.echo(f"mu {line}")
        with (self.home / "experiment.log").open("a") as log:
            mu([str(word) for word in words], self.home, log.fileno())
        with self.done.open("a") as file:
            file.write(line + "\n")

    def prepare(self) -> None:
        """The pairs that the generator is trained on, and the generator; the films, as they come."""
        (self.home / "prompts.yaml").write_text(PROMPTS)
        self.table(self.pairs, "rocov2-chest")
        settings = {**GENERATOR, "train.steps": self.steps, "train.valid_every": self.steps}
        self.mu("pretrain", "demo", "--name", "generator", *options(settings))
        self.table(self.films, "pneumonia", f"prompts={self.home}/prompts.yaml")
        self.mu(
            "synthesize", "--run", "generator", "--reconstruct", "test", "--data", "pneumonia", "--out",
            self.home / "reconstructed",
        )  # fmt: skip

    def table(self, path: Path, name: str, *more: str) -> None:
        """Prepare a table; `more` are options."""
        words = [word for option in more for word in ("-o", option)]
        self.mu("prepare", "table", "--raw", path, "--name", name, "--size", SIZE, "--workers", 1, *words)

    def seed(self, seed: int) -> None:
        """Both arms of one seed; priors see the real films of this seed's 10 % and no other."""
        chosen = {**CLASSIFIER, "data.fraction_seed": seed, "train.seed": seed}
        tune = ("finetune", "finetune-demo", "--run", "generator", "--name")
        self.mu(*tune, f"real-{seed}", *options(chosen))
        few, priors, samples = f"few-{seed}", f"priors-{seed}", self.home / f"samples-{seed}"
        self.table(self.films_of(seed), few, "all=train", f"prompts={self.home}/prompts.yaml")
        settings = {**PRIORS, "train.seed": seed}
        fit = ("fit-prior", "prior-demo", "--run", "generator", "--data", few, "--name", priors)
        self.mu(*fit, *options(settings))
        ask = ("--prompts", "given", "--n", SYNTHETIC, "--seed", seed, "--out", samples)
        self.mu("synthesize", "--run", priors, *ask)
        self.table(samples / "samples.csv", f"synthetic-{seed}")
        both = {**chosen, "data.extra": f"[synthetic-{seed}]"}
        self.mu(*tune, f"both-{seed}", *options(both))

    def films_of(self, seed: int) -> Path:
        """A table of the real films that the arm without synthetic ones was trained on."""
        keys = set(json.loads((self.home / f"runs/real-{seed}/samples.json").read_text())["train"]["keys"])
        with self.films.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if Path(row["image"]).stem in keys]
        if len(rows) != len(keys):
            raise click.ClickException(f"{self.films}: {len(rows)} of {len(keys)} films are in it")
        path = self.home / f"few-{seed}.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "patient", CLASS])
            writer.writerows([self.films.parent / row["image"], row["patient"], row[CLASS]] for row in rows)
        return path


def options(settings: Mapping[str, object]) -> list[str]:
    """`-o key=value` for each."""
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def result_of(home: Path, arm: str, seed: int) -> dict[str, Any] | None:
    """The result file of one arm and seed; None if it was not measured."""
    path = home / f"runs/{arm}-{seed}/results/finetune-pneumonia-test.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


def metric_of(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A metric of a result file."""
    found: Mapping[str, Any] = next(metric for metric in result["metrics"] if metric["name"] == name)
    return found


def scores_of(home: Path, arm: str, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.float64], list[str]]:
    """Truth and score of pneumonia of each test film, and their keys."""
    path = home / f"runs/{arm}-{seed}/results/finetune-pneumonia-test.samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    truth = np.array([row["truth"] == CLASS for row in rows])
    return truth, np.array([row["scores"][CLASS] for row in rows]), [row["key"] for row in rows]


def pooled_difference(
    home: Path, seeds: Sequence[int], patients: Mapping[str, str]
) -> tuple[float, Interval]:
    """Mean over seeds of the difference in AUROC on the same films, and its interval over patients.

    Args:
        patients: key of a film -> its patient, which a resample takes or leaves as a whole.
    """
    arms = [[scores_of(home, arm, seed) for seed in seeds] for arm in ("both", "real")]
    keys = arms[0][0][2]
    assert all(one[2] == keys for arm in arms for one in arm)

    def difference(rows: NDArray[np.int64]) -> dict[str, float | None]:
        if len(set(arms[0][0][0][rows].tolist())) < 2:
            return {"difference": None}  # no AUROC without both classes
        both, real = ([auroc(truth[rows], score[rows]) for truth, score, _ in arm] for arm in arms)
        return {"difference": statistics.fmean(both) - statistics.fmean(real)}

    value = difference(np.arange(len(keys)))["difference"]
    assert value is not None  # the test films show both classes
    return value, intervals(difference, len(keys), [patients[key] for key in keys])["difference"]


def page(home: Path, seeds: Sequence[int], patients: Mapping[str, str]) -> str:
    """The generated part of docs/augmentation.md."""
    done = [seed for seed in seeds if all(result_of(home, arm, seed) for arm in ARMS)]
    results = {arm: [result_of(home, arm, seed) or {} for seed in done] for arm in ARMS}
    if not done:
        return "No seed is complete yet."

    def cell(result: Mapping[str, Any]) -> str:
        metric = metric_of(result, AUROC)
        return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"

    heads = [f"seed {seed}" for seed in done]
    lines = ["| AUROC, test | " + " | ".join([*heads, "mean"]) + " |", "|---" * (len(done) + 2) + "|"]
    values = {arm: [metric_of(result, AUROC)["value"] for result in results[arm]] for arm in ARMS}
    for arm, name in ARMS.items():
        mean = statistics.fmean(values[arm])
        lines.append("| " + " | ".join([name, *map(cell, results[arm]), f"{mean:.3f}"]) + " |")
    gains = [both - real for both, real in zip(values["both"], values["real"], strict=True)]
    shown = [f"{gain:+.3f}" for gain in gains]
    lines.append("| " + " | ".join(["difference", *shown, f"{statistics.fmean(gains):+.3f}"]) + " |")
    value, spread = pooled_difference(home, done, patients)
    first = results["both"][0]
    counts = {name: entry["n"] for name, entry in first["extra_samples"].items()}
    over_seeds = interval([100 * gain for gain in gains], signed=True) if len(gains) > 1 else "one seed"
    films = f"{first['train']['n']} real films, and {sum(counts.values())} synthetic ones beside them"
    return "\n\n".join((
        f"Seeds complete: {len(done)} of {len(seeds)}. Test films: {first['n']}; trained on {films}.\n"
        "Intervals of cells: 95 % bootstrap over patients.",
        "\n".join(lines),
        f"Difference, mean over seeds: {value:+.3f} [{spread.low:+.3f}, {spread.high:+.3f}] over resampled "
        f"patients;\nin percentage points over seeds (Student's t): {over_seeds}.",
        reconstruction(home),
    ))  # fmt: skip


def reconstruction(home: Path) -> str:
    """How well the generator passes the films that it never saw through its codes."""
    lines = (home / "reconstructed" / "samples.jsonl").read_text().splitlines()
    quality = [json.loads(line)["psnr"] for line in lines]
    mean = statistics.fmean(quality)
    return f"Test films through the generator's codes: PSNR {mean:.1f} dB, n = {len(quality)}."


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "augmentation", show_default=True
)
@click.option(
    "--pairs", type=click.Path(exists=True, path_type=Path), required=True,
    help="Table of chest radiographs with captions: image, split, caption.",
)  # fmt: skip
@click.option(
    "--films", type=click.Path(exists=True, path_type=Path), required=True,
    help="Table of films with a label: image, patient, pneumonia.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 5), default=3, show_default=True)
@click.option(
    "--steps", type=click.IntRange(min=1), default=300, show_default=True, help="Steps of the generator."
)
def main(home: Path, pairs: Path, films: Path, seeds: int, steps: int) -> None:
    """Train what is missing, then print the table and put it into docs/augmentation.md."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(home, pairs, films, steps)
    experiment.prepare()
    with films.open(newline="") as file:
        patients = {Path(row["image"]).stem: row["patient"] for row in csv.DictReader(file)}
    for seed in range(seeds):
        experiment.seed(seed)
        # seed by seed, so that a stopped experiment leaves a table
        write_part("augmentation", page(home, range(seeds), patients))
    click.echo(page(home, range(seeds), patients))


if __name__ == "__main__":
    main()
