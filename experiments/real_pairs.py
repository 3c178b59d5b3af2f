"""What each objective adds on real radiographs: `small.yaml` on ROCOv2's chest radiographs, three seeds.

Runs the commands that a user would type and writes docs/real-pairs.md from their result files. Finished runs
are not repeated and a stopped one resumes from its checkpoint; `--table` only writes what there is so far.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from experiments.ablation import interval
from experiments.pair_baselines import Pairs, linear_ranks, neighbour_ranks, neighbour_texts
from experiments.running import ROOT, mu
from medunifier_cli.data.images.stored import decode_grey
from medunifier_cli.data.shards import Shards
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.scores.paired import mean_differences
from medunifier_cli.scores.partners import rank_scores
from medunifier_cli.scores.text.report import report_scores

DATASET, SPLIT, SECTION = "rocov2-chest", "valid", "caption"
STORED = 128
"""Edge of the stored images, pixels: larger than what the model sees, so that crops are sharp."""
AMONG = 500  # the first pairs of the split are ranked against each other
OBJECTIVES = ("itc", "itm", "itg", "tig")
VARIANTS = {"ITC": ("itc",), "ITC ITM ITG": ("itc", "itm", "itg"), "all four": OBJECTIVES}
DIFFERENCES = (("ITM and ITG added to ITC", "ITC ITM ITG", "ITC"), ("TIG added", "all four", "ITC ITM ITG"))
WAYS = {"i→t": "image to text", "t→i": "text to image"}
BEGIN, END = "<!-- written by experiments/real_pairs.py -->", "<!-- end -->"


def _value(value: float, floor: float) -> float:
    return value


def _percent(value: float, floor: float) -> float:
    return 100 * value


def _living(value: float, floor: float) -> float:
    return floor + 1 - value  # without any skill all codes but one are dead


@dataclass(frozen=True)
class Figure:
    """A column: its title, where its value is in a run's result files, and how it is shown."""

    title: str
    file: str
    """Start of the name of a result file; after a slash, of the run of the priors."""
    metric: str
    shown: Callable[[float, float], float] = _percent
    """Of value and baseline."""


RETRIEVAL = tuple(
    Figure(f"{title} {way}", "retrieval-pairs", f"{words}, {metric}", shown)
    for way, words in WAYS.items()
    for title, metric, shown in (
        *((f"R@{k}", f"recall@{k}", _percent) for k in (1, 5, 10)),
        ("median rank", "median rank", _value),
    )
)
BLEU, CIDER = Figure("BLEU-4", "report-", "BLEU-4"), Figure("CIDEr", "report-", "CIDEr")
PLACE = "perplexity at one position"
OTHERS = (
    Figure("ITM ACC, random", "pretraining", "ITM accuracy, random pairs"),
    Figure("ITM ACC, hard", "pretraining", "ITM accuracy, hard pairs"),
    BLEU,
    CIDER,
    Figure("PSNR, dB", "pretraining", "reconstruction PSNR", _value),
    Figure("live codes, top", "pretraining", "dead codes, top codebook", _living),
    Figure("live codes, bottom", "pretraining", "dead codes, bottom codebook", _living),
    *(Figure(f"{PLACE}, {of}", "pretraining", f"{PLACE}, {of} codebook", _value) for of in ("top", "bottom")),
    Figure("prior nats, top", "priors/priors", "top prior, nats per code", _value),
    Figure("prior nats, bottom", "priors/priors", "bottom prior, nats per code", _value),
)
SINGLE = (*(figure for figure in RETRIEVAL if figure.title.startswith("R@10")), *OTHERS[:2])
"""Shown for each run by itself, with the interval over pairs."""


def run_name(variant: str, seed: int) -> str:
    """Name of a pre-training run."""
    return f"{variant.lower().replace(' ', '-')}-seed{seed}"


def options(variant: str, seed: int) -> list[str]:
    """What a run changes in `small.yaml`, as `-o` takes it."""
    off = [f"objectives.{name}=0" for name in OBJECTIVES if name not in VARIANTS[variant]]
    return [f"data.dataset={DATASET}", f"data.test={SPLIT}", f"train.seed={seed}", *off]


def train_and_measure(variant: str, seed: int, home: Path) -> None:
    """One run: `mu pretrain`, then each verb that its objectives allow."""
    name, changed = run_name(variant, seed), options(variant, seed)
    # a run of another version of the recipe is trained again, and never mixed with those of this one
    wanted = hashlib.sha256(repr(load_recipe("small", changed)).encode()).hexdigest()
    done = home / f"{name}.done"
    if done.exists() and done.read_text() == wanted:
        return
    begun = home / f"{name}.begun"
    fresh = ["--fresh"] if begun.exists() and begun.read_text() != wanted else []
    begun.write_text(wanted)
    click.echo(f"{name}: log in {home / name}.log")
    settings = [part for one in changed for part in ("-o", one)]
    commands = [["pretrain", "small", "--name", name, *fresh, *settings]]
    commands.append(["retrieve", "--run", name, "--ids", str(home / "pairs.txt")])
    if "itg" in VARIANTS[variant]:
        commands.append(["report", "--run", name, "--split", SPLIT])
    if "tig" in VARIANTS[variant]:
        commands.append(["fit-prior", "prior-demo", "--run", name, "--name", f"{name}-priors", *fresh])
    with (home / f"{name}.log").open("a") as log:
        for command in commands:
            try:
                mu(command, home, log.fileno())
            except click.ClickException as error:
                # codes that collapsed have no prior; the run's other numbers are wanted all the same
                if command[0] != "fit-prior":
                    raise
                click.echo(f"{name}: no priors: {error.message}")
    done.write_text(wanted)
    click.echo(f"{name}: done")


def metrics_of(home: Path, variant: str, seed: int, file: str) -> Iterator[Mapping[str, Any]]:
    """The metrics in the result files whose names begin with `file`; none for a run that is not finished."""
    *part, start = file.split("/")
    if not (home / f"{run_name(variant, seed)}.done").exists():
        return
    folder = home / "runs" / "-".join([run_name(variant, seed), *part]) / "results"
    for path in sorted(folder.glob(f"{start}*.json")):
        yield from json.loads(path.read_text())["metrics"]


def measured(home: Path, variant: str, seed: int, figure: Figure, floor: bool = False) -> float | None:
    """A run's figure, or with `floor` its baseline; None where its objectives do not give one."""
    for metric in metrics_of(home, variant, seed, figure.file):
        if metric["name"] == figure.metric and metric["value"] is not None:
            base = float("nan") if metric["floor"] is None else float(metric["floor"])
            return figure.shown(base if floor else float(metric["value"]), base)
    return None


def hits(home: Path, variant: str, seed: int) -> dict[str, NDArray[np.float64]] | None:
    """Way -> 100 where the own partner of a pair is among the first ten, else 0; None without that run."""
    if not (home / f"{run_name(variant, seed)}.done").exists():
        return None
    (path,) = (home / "runs" / run_name(variant, seed) / "results").glob("retrieval-pairs*.samples.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = {way: words.replace(" ", "_") + "_rank" for way, words in WAYS.items()}
    return {way: 100.0 * np.array([row[name] <= 10 for row in rows]) for way, name in names.items()}


def table(
    heading: str, figures: Sequence[Figure], rows: Sequence[tuple[str, Callable[[Figure], str]]]
) -> str:
    """A Markdown table with a column for each figure."""
    titles = " | ".join((heading, *(figure.title for figure in figures)))
    lines = [f"| {titles} |", "|---" * (len(figures) + 1) + "|"]
    lines += ["| " + " | ".join((name, *(cell(figure) for figure in figures))) + " |" for name, cell in rows]
    return "\n".join(lines)


def baselines(train: Pairs, valid: Pairs, partners: NDArray[np.int64]) -> dict[str, dict[str, float]]:
    """Name of a baseline -> title of a figure -> value. `partners`: [n] of the pairs that are ranked."""
    ranked = Pairs(valid.image_nHW[: len(partners)], valid.texts[: len(partners)])
    out: dict[str, dict[str, float]] = {}
    for name, ranks in (("nearest neighbour", neighbour_ranks), ("linear", linear_ranks)):
        out[name] = {}
        for way, rank_n in zip(WAYS, ranks(train, ranked, partners).values(), strict=True):
            for metric, per_pair in rank_scores(rank_n, (1, 5, 10)).items():
                title = metric.replace("recall", "R") + f" {way}"
                out[name][title] = float(100 * per_pair.mean())
            out[name][f"median rank {way}"] = float(np.median(rank_n))
    scores = report_scores(neighbour_texts(train, valid), valid.texts, draws=0).scores
    out["nearest neighbour"] |= {BLEU.title: 100 * scores["bleu_4"], CIDER.title: 100 * scores["cider"]}
    return out


def page(home: Path, seeds: int, beside: Mapping[str, Mapping[str, float]]) -> str:
    """The generated part of docs/real-pairs.md."""

    def mean(variant: str) -> Callable[[Figure], str]:
        return lambda figure: interval([measured(home, variant, seed, figure) for seed in range(seeds)])

    def floor(figure: Figure) -> str:
        every = [measured(home, variant, s, figure, floor=True) for variant in VARIANTS for s in range(seeds)]
        known = [value for value in every if value is not None]
        return f"{statistics.fmean(known):.1f}" if known else ""

    def of_baseline(name: str) -> Callable[[Figure], str]:
        return lambda figure: f"{beside[name][figure.title]:.1f}" if figure.title in beside[name] else ""

    def gain(more: str, less: str) -> Callable[[Figure], str]:
        def cell(figure: Figure) -> str:
            pairs = [[measured(home, which, s, figure) for which in (more, less)] for s in range(seeds)]
            return interval([a - b for a, b in pairs if a is not None and b is not None], signed=True)

        return cell

    rows = [("no skill", floor), *((name, of_baseline(name)) for name in beside)]
    variants = [(variant, mean(variant)) for variant in VARIANTS]
    gains = [(name, gain(more, less)) for name, more, less in DIFFERENCES]
    finished = {
        variant: [str(s) for s in range(seeds) if (home / f"{run_name(variant, s)}.done").exists()]
        for variant in VARIANTS
    }
    return "\n\n".join((
        "Finished seeds: " + "; ".join(f"{k}: {', '.join(v) or 'none'}" for k, v in finished.items()) + "."
        "\nMean over seeds ± half of its 95 % interval (Student's t); a single seed has no interval here.",
        f"Retrieval among {AMONG} held-out pairs, recall in percent:",
        table("", RETRIEVAL, [*rows, *variants]),
        "Matching, captions, images and codes, all held-out pairs (accuracy, BLEU-4 and CIDEr times 100):",
        table("", OTHERS, [*rows[:2], *variants]),
        "Differences between runs of the same seed:",
        table("", RETRIEVAL, gains),
        table("", OTHERS, gains),
        "The same differences in recall@10, hits averaged over the seeds that both have, with 95 % intervals"
        "\nover pairs (paired bootstrap):",
        _paired_table(home, seeds),
        "Each run by itself, with 95 % intervals over pairs (bootstrap) and the baseline in brackets:",
        _single_table(home, seeds),
    ))  # fmt: skip


def _paired_table(home: Path, seeds: int) -> str:
    lines = ["|  | " + " | ".join(f"R@10 {way}" for way in WAYS) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for name, more, less in DIFFERENCES:
        both = [(hits(home, less, s), hits(home, more, s)) for s in range(seeds)]
        known = [(a, b) for a, b in both if a is not None and b is not None]
        cells = [""] * len(WAYS)
        if known:
            sides = [{way: np.mean([pair[i][way] for pair in known], axis=0) for way in WAYS} for i in (0, 1)]
            found = mean_differences(sides[0], sides[1])
            cells = [
                f"{found[way].value:+.1f} ({found[way].interval.low:+.1f} to {found[way].interval.high:+.1f})"
                for way in WAYS
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _single_table(home: Path, seeds: int) -> str:
    def cell_of(variant: str, seed: int) -> Callable[[Figure], str]:
        def cell(figure: Figure) -> str:
            for metric in metrics_of(home, variant, seed, figure.file):
                if metric["name"] == figure.metric:
                    value, low, high, base = (100 * metric[key] for key in ("value", "low", "high", "floor"))
                    return f"{value:.1f} ({low:.1f} to {high:.1f}) [{base:.1f}]"
            return ""

        return cell

    rows = [(run_name(v, s), cell_of(v, s)) for s in range(seeds) for v in VARIANTS]
    return table("", SINGLE, [row for row in rows if (home / f"{row[0]}.done").exists()])


def read_pairs(shards: Shards, size: int) -> Pairs:
    """All images of a split at `size` pixels, and their captions."""
    image_nHW = np.empty((len(shards), size, size), np.uint8)
    for i in range(len(shards)):
        if not decode_grey(shards.image(i), image_nHW[i]):
            raise click.ClickException(f"{shards.where(i)}: damaged image; prepare the data again")
    return Pairs(image_nHW, [shards.meta(i)["sections"][SECTION] for i in range(len(shards))])


def prepare(home: Path, raw: Path | None, size: int) -> dict[str, dict[str, float]]:
    """Shards, the list of the ranked pairs, and the baselines, computed once."""
    shards = home / "data" / "shards" / DATASET
    if raw is not None:
        mu(["prepare", "table", "--raw", str(raw), "--name", DATASET, "--size", str(STORED)], home)
    elif not shards.is_dir():
        raise click.UsageError("--raw: name the table of the pairs, for example rocov2-chest/pairs.csv")
    file = home / "baselines.json"
    if not file.exists():
        train, valid = (read_pairs(Shards.open(shards, split), size) for split in ("train", SPLIT))
        opened = Shards.open(shards, SPLIT)
        (home / "pairs.txt").write_text("".join(f"{opened.key(i)}\n" for i in range(min(AMONG, len(opened)))))
        _, partners = np.unique([" ".join(text.split()) for text in valid.texts[:AMONG]], return_inverse=True)
        file.write_text(json.dumps(baselines(train, valid, partners.astype(np.int64)), indent=1))
    content: dict[str, dict[str, float]] = json.loads(file.read_text())
    return content


@click.command()
@click.option(
    "--home", type=click.Path(path_type=Path), default=ROOT / "demo" / "real-pairs", show_default=True
)
@click.option("--raw", type=click.Path(path_type=Path), help="Table of the pairs; needed at the first start.")
@click.option("--seeds", type=click.IntRange(1, 5), default=3, show_default=True)
@click.option("--table", "only_table", is_flag=True, help="Train nothing: write what is finished so far.")
def main(home: Path, raw: Path | None, seeds: int, only_table: bool) -> None:
    """Train what is missing, then print the tables and put them into docs/real-pairs.md."""
    home = home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    beside = prepare(home, raw, load_recipe("small").data.image_size)
    if not only_table:
        for seed in range(seeds):  # seed by seed, so that a stopped experiment has whole tables
            for variant in VARIANTS:
                train_and_measure(variant, seed, home)
    text = page(home, seeds, beside)
    click.echo(text)
    target = ROOT / "docs" / "real-pairs.md"
    before, _, rest = target.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    target.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
