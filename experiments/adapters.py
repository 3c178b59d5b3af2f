"""Adapters and heads in our form and in that of the authors' code, at equal steps.

Runs the commands that a user would type and writes docs/adapters.md from their result files. Finished runs
are not repeated, so a stopped experiment resumes; `--table` only writes what there is so far.

python experiments/adapters.py --pairs rocov2-chest/pairs.csv --films pediatric-pneumonia/labels.csv
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from experiments import codes
from experiments.ablation import interval
from experiments.codes import LEARNED, PAIRS, PHANTOM, Data, Training
from experiments.running import ROOT, mu
from medunifier_cli.data.shards import Shards
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import GeneratorConfig
from medunifier_cli.scores.bootstrap import Interval, intervals
from medunifier_cli.scores.classification import auroc

OURS, THEIRS = "ours", "published"
PUBLISHED: dict[str, object] = {key: asdict(GeneratorConfig())[key] for key in LEARNED}
"""The adapters of the authors' code, the defaults of the same keys."""
FORMS: dict[str, dict[str, object]] = {
    OURS: LEARNED,
    THEIRS: PUBLISHED,
    **{f"{OURS} but {key}": {**LEARNED, key: value} for key, value in PUBLISHED.items()},
}
"""Form of the adapters -> its keys; the last three are ours but for one."""
GENERATORS = ("small", "full")
"""Recipes whose generator is tried: the first with all forms, the other with ours and the published one."""
SIZES: dict[str, object] = {"code_width": 64, "base_width": 64, "residual_width": 64}
"""Widths of the generator that the experiment sets itself; all other keys are the recipe's."""
MEASURED = {
    "PSNR, dB": "reconstruction PSNR",
    "dead codes, top": "dead codes, top codebook",
    "perplexity at one position, top": "perplexity at one position, top codebook",
    "perplexity at one position, bottom": "perplexity at one position, bottom codebook",
}
"""Title of a column -> metric of a result file."""
HEADS = ("mlp", "two-linear")
"""Ours and the authors'."""
FILMS = "pneumonia"
POSITIVE = "pneumonia"
TASKS: dict[str, dict[str, object]] = {
    "phantom": {},
    FILMS: {"data.dataset": FILMS, "model.loss": "cross_entropy", "model.metric": "auroc"},
}
"""Labelled data -> what a recipe must set to train on it."""
WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "frozen": ("probe-demo", {}),
    "fine-tuned": ("finetune-demo", {"train.global_batch": 16, "train.valid_every": 20}),
}
"""How a head is trained -> the recipe, and what is set beside the data."""
SHARES = {"phantom": ("0.1", "1"), FILMS: ("0.1",)}
PRETRAINED = "demo"
"""Run that every head starts from: the recipe of that name, on phantom."""
BEGIN, END = "<!-- written by experiments/adapters.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Tuning:
    """One head: how it is trained, on what share of which data, and the seed of sample and weights."""

    way: str
    data: str
    share: str
    head: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run."""
        return f"{self.way}-{self.data}-{self.share}-{self.head}-seed{self.seed}"

    @property
    def command(self) -> list[str]:
        """Arguments of `mu`."""
        recipe, more = WAYS[self.way]
        settings = {**TASKS[self.data], **more, "model.head": self.head, "data.fraction": self.share,
                    "data.fraction_seed": self.seed, "train.seed": self.seed, "data.workers": 0,
                    "train.threads": 1, "train.tensorboard": "false"}  # fmt: skip
        options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
        return ["finetune", recipe, "--run", PRETRAINED, "--name", self.name, *options]

    def result(self, home: Path) -> Path:
        """What the run measures at its end."""
        return home / "runs" / self.name / "results" / f"finetune-{self.data}-test.json"


def adapters(data: Sequence[Data], steps: int, seeds: int) -> list[Training]:
    """The pre-training runs, TIG alone, measured on the validation split, as defaults are chosen by them.

    Both forms with the first recipe's generator come first, so that a stopped experiment has what the page is
    for.
    """

    def run(recipe: str, form: str, one: Data, seed: int) -> Training:
        generator = {**asdict(load_recipe(recipe).model.generator), **SIZES, **FORMS[form]}
        return Training(f"{recipe} {form}", generator, one, "valid", steps, seed, ("tig",))

    first, second = GENERATORS
    return [
        run(recipe, form, one, seed)
        for recipe, forms in ((first, (OURS, THEIRS)), (second, (OURS, THEIRS)), (first, list(FORMS)[2:]))
        for seed in range(seeds)
        for one in data
        for form in forms
    ]


def tunings(data: Sequence[str], seeds: int) -> list[Tuning]:
    """The heads, both of a kind one after the other."""
    return [
        Tuning(way, one, share, head, seed)
        for way in WAYS
        for one in data
        for share in SHARES[one]
        for seed in range(seeds)
        for head in HEADS
    ]


def metrics_of(run: Training | Tuning, home: Path) -> dict[str, Mapping[str, Any]] | None:
    """Name -> metric of a finished run; None for another."""
    path = run.result(home)
    if not path.exists():
        return None
    return {metric["name"]: metric for metric in json.loads(path.read_text())["metrics"]}


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    if not rows:
        return "Nothing is finished yet."
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows))


def adapter_rows(runs: Sequence[Training], home: Path, difference: bool) -> Iterator[list[str]]:
    """Means over seeds of each form, or of each form's difference from ours between runs of one seed."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in runs:
        metrics = metrics_of(run, home)
        if metrics is not None:
            values = [float(metrics[name]["value"]) for name in MEASURED.values()]
            found.setdefault((run.data.name, run.variant), {})[run.seed] = values
    for (data, variant), by in found.items():
        recipe, _, form = variant.partition(" ")
        ours = found.get((data, f"{recipe} {OURS}"), {})
        seeds = sorted(by.keys() & ours.keys()) if difference else sorted(by)
        if not seeds or (difference and form == OURS):
            continue
        rows = [
            [a - b for a, b in zip(by[seed], ours[seed], strict=True)] if difference else by[seed]
            for seed in seeds
        ]
        columns = zip(*rows, strict=True)
        yield [data, recipe, form, ", ".join(map(str, seeds)), *(interval(c, difference) for c in columns)]


def scores_of(run: Tuning, home: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64], list[str]]:
    """Truth and score [n, C] of the test images, and their keys.

    C labels; of two classes that exclude each other, the one that is looked for.
    """
    path = run.result(home).with_suffix(".samples.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if run.data == FILMS:
        truth = np.array([[row["truth"] == POSITIVE] for row in rows])
        return truth, np.array([[row["scores"][POSITIVE]] for row in rows]), [row["key"] for row in rows]
    names = list(rows[0]["scores"])
    truth = np.array([[row["truth"][name] == 1 for name in names] for row in rows])
    score = np.array([[row["scores"][name] for name in names] for row in rows])
    return truth, score, [row["key"] for row in rows]


def head_difference(pairs: Sequence[tuple[Tuning, Tuning]], home: Path) -> tuple[float, Interval]:
    """The second head's AUROC minus the first's, mean over seeds, and its interval over patients of the test
    split, which a resample takes or leaves as a whole."""
    sides = [[scores_of(pair[i], home) for pair in pairs] for i in (0, 1)]
    keys = sides[0][0][2]
    assert all(one[2] == keys for side in sides for one in side)
    shards = Shards.open(home / "data" / "shards" / pairs[0][0].data, "test")
    patient = {shards.key(row): str(shards.index["subject"][row]) for row in range(len(shards))}

    def mean(side: int, rows: NDArray[np.int64]) -> float:
        return statistics.fmean(
            auroc(truth[rows, label], score[rows, label])
            for truth, score, _ in sides[side]
            for label in range(truth.shape[1])
        )

    def difference(rows: NDArray[np.int64]) -> dict[str, float | None]:
        truth = sides[0][0][0][rows]
        if (truth.all(axis=0) | ~truth.any(axis=0)).any():
            return {"difference": None}  # no AUROC without both classes
        return {"difference": mean(1, rows) - mean(0, rows)}

    value = difference(np.arange(len(keys)))["difference"]
    assert value is not None  # the test split shows every class
    return value, intervals(difference, len(keys), [patient[key] for key in keys])["difference"]


def head_rows(runs: Sequence[Tuning], home: Path) -> Iterator[list[str]]:
    """AUROC of both heads in percent, means over seeds, and the difference over seeds and over patients."""
    for way in WAYS:
        for data in TASKS:
            for share in SHARES[data]:
                here = [run for run in runs if (run.way, run.data, run.share) == (way, data, share)]
                by = {(run.head, run.seed): run for run in here if run.result(home).exists()}
                seeds = [seed for seed in sorted({s for _, s in by}) if all((h, seed) in by for h in HEADS)]
                if not seeds:
                    continue
                values = [
                    [100 * (metrics_of(by[head, s], home) or {})["fine-tuned auroc"]["value"] for s in seeds]
                    for head in HEADS
                ]
                gains = [b - a for a, b in zip(*values, strict=True)]
                pairs = [(by[HEADS[0], seed], by[HEADS[1], seed]) for seed in seeds]
                value, spread = head_difference(pairs, home)
                over = f"{100 * value:+.1f} ({100 * spread.low:+.1f} to {100 * spread.high:+.1f})"
                yield [
                    way, data, f"{100 * float(share):g} %", ", ".join(map(str, seeds)),
                    *map(interval, values), interval(gains, signed=True), over,
                ]  # fmt: skip


def page(runs: Sequence[Training], heads: Sequence[Tuning], home: Path) -> str:
    """The generated part of docs/adapters.md."""
    title = ("data", "generator", "adapters", "seeds", *MEASURED)
    return "\n\n".join((
        f"Adapters, {runs[0].steps} steps of {codes.BATCH} images, TIG alone, validation split; mean over "
        "seeds ± half of its 95 %\ninterval (Student's t):",
        markdown(title, list(adapter_rows(runs, home, difference=False))),
        "Differences from ours, between runs of the same seed:",
        markdown(title, list(adapter_rows(runs, home, difference=True))),
        "Each run by itself; codes in use and perplexities are top / bottom, of 512:",
        codes.table(runs, home),
        "Heads, AUROC on test in percent; difference: `two-linear` minus `mlp`, over seeds (Student's t) "
        "and over\npatients (paired bootstrap of the mean over seeds):",
        markdown(
            ("training", "data", "labels", "seeds", *(f"`{head}`" for head in HEADS), "over seeds",
             "over patients"), list(head_rows(heads, home)),
        ),
    ))  # fmt: skip


def train(run: Training | Tuning, home: Path) -> None:
    """Train and measure, unless this was done; the log is beside the runs."""
    if run.result(home).exists():
        return
    click.echo(f"{run.name}: log in {home / run.name}.log")
    with (home / f"{run.name}.log").open("a") as log:
        mu(run.command, home, log.fileno())


def prepare(data: Sequence[Data], pairs: Path | None, films: Path | None, home: Path) -> None:
    """Shards of 64 x 64 pixels, and the run that heads start from; what is there stays as it is."""
    codes.prepare(data, pairs, home)
    if films is not None and not (home / "data" / "shards" / FILMS / "manifest.json").exists():
        mu(["prepare", "table", "--raw", str(films), "--name", FILMS, "--size", "64"], home)
    if not (home / "runs" / PRETRAINED / "results" / "pretraining-phantom-test.json").exists():
        mu(["pretrain", PRETRAINED, "--name", PRETRAINED], home)


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "adapters", show_default=True
)
@click.option("--pairs", type=click.Path(exists=True, path_type=Path), help="Table of image-text pairs.")
@click.option("--films", type=click.Path(exists=True, path_type=Path), help="Table of labelled films.")
@click.option("--steps", type=click.IntRange(min=codes.WARM + 1), default=300, show_default=True)
@click.option("--seeds", type=click.IntRange(1, 5), default=3, show_default=True)
@click.option("--only", default="", help="Train only runs whose names begin so; comma between.")
@click.option("--together", type=click.IntRange(min=1), default=2, show_default=True, help="Runs at a time.")
@click.option("--table", "only_table", is_flag=True, help="Train nothing: write what is finished so far.")
def main(
    home: Path, pairs: Path | None, films: Path | None, steps: int, seeds: int, only: str, together: int,
    only_table: bool,
) -> None:  # fmt: skip
    """Train what is missing, then print the tables and put them into docs/adapters.md."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    shards = home / "data" / "shards"
    data = [PHANTOM] + ([PAIRS] if pairs or (shards / PAIRS.name).is_dir() else [])
    runs = adapters(data, steps, seeds)
    heads = tunings([one for one in TASKS if one != FILMS or films or (shards / FILMS).is_dir()], seeds)
    if not only_table:
        prepare(data, pairs and pairs.resolve(), films and films.resolve(), home)
        with ThreadPoolExecutor(together) as pool:
            every: tuple[Training | Tuning, ...] = (*runs, *heads)
            begins = tuple(only.split(","))
            for job in [pool.submit(train, run, home) for run in every if run.name.startswith(begins)]:
                job.result()
    text = page(runs, heads, home)
    click.echo(text)
    target = ROOT / "docs" / "adapters.md"
    before, _, rest = target.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    target.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
