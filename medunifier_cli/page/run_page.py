"""Write `runs/<name>/page/index.html`: headline numbers, pictures, texts, all numbers and curves of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from medunifier_cli.errors import CheckpointError
from medunifier_cli.page.differences import Pieces
from medunifier_cli.page.document import save_page
from medunifier_cli.page.pictures import Shown, read_columns, shown
from medunifier_cli.page.plot import Curve, plot
from medunifier_cli.run.log import read_log
from medunifier_cli.run.provenance import read_provenance
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.say import say

BARS = (
    "Bars begin at 0 and end at 1, or at the largest number of their row where that is above 1. The thin "
    "line is the 95 % interval, the upright mark the baseline: what is reached without any skill."
)
GENERATED = "synthetic.png"
"""In a run's `samples/`: a grid of synthetic images, with their prompts as captions."""
MOST_TILES = 12
"""Reconstructions, or synthetic images, in a page."""
MOST = 1e300
"""Least size of a number that is not plotted."""


@dataclass(frozen=True)
class Span:
    """Where the ends of a bar and its marks are, in per cent of its length."""

    value: float
    baseline: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Number:
    """A measured number as the page shows it."""

    name: str
    value: str
    bar: Span
    baseline: str = ""
    interval: str = ""
    where: str = ""
    """Task and data."""


@dataclass(frozen=True)
class NumberGroup:
    """The numbers of one task on one split."""

    title: str
    caption: str
    numbers: Sequence[Number]


@dataclass(frozen=True)
class ReportExample:
    """A generated report beside its reference."""

    key: str
    generated: Pieces
    reference: Pieces
    image: Shown | None


@dataclass(frozen=True)
class Hit:
    """A text that was found for an image."""

    text: str
    score: float
    """Cosine similarity."""
    about: str


@dataclass(frozen=True)
class RetrievalExample:
    """An image, and the texts that were found for it."""

    about: str
    hits: Sequence[Hit]
    image: Shown | None


@dataclass(frozen=True)
class Examples:
    """Examples of one kind, and how they were chosen."""

    caption: str
    examples: Sequence[Any]


@dataclass(frozen=True)
class ConfusionRow:
    """Samples of one class."""

    name: str
    cells: Sequence[tuple[int, float]]
    """For each predicted class the number of samples, and their share of the row."""


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix."""

    title: str
    classes: Sequence[str]
    rows: Sequence[ConfusionRow]
    total: int
    accuracy: float


@dataclass(frozen=True)
class Contents:
    """What results say about a run, ready to be shown."""

    headlines: Sequence[Number] = ()
    groups: Sequence[NumberGroup] = ()
    reports: Examples | None = None
    retrieval: Examples | None = None
    confusions: Sequence[Confusion] = ()
    made_from: Sequence[Run] = field(default=())
    """Runs made from this one, whose synthetic images are shown."""
    texts_of: Sequence[Path] = ()
    """Data whose texts the examples quote, see `files.atomic_write`."""


@dataclass(frozen=True)
class _Tile:
    images: Sequence[Shown]
    caption: str


@dataclass(frozen=True)
class _Pictures:
    title: str
    caption: str
    tiles: Sequence[_Tile]
    pairs: bool


def span(
    value: float | None, baseline: float | None = None, low: float | None = None, high: float | None = None
) -> Span:
    """Where a number and what goes with it are on a bar, see `BARS`; below 0 it begins at the lowest."""
    known = [x for x in (value, baseline, low, high) if x is not None and math.isfinite(x)]
    first, last = min([0.0, *known]), max([0.0, *known])
    last = 1.0 if first == 0 and last <= 1 else last

    def at(x: float | None) -> float | None:
        if x is None or not math.isfinite(x):
            return None
        return round(100 * (x - first) / ((last - first) or 1.0), 2)

    ends = (at(low), at(high)) if at(low) is not None and at(high) is not None else (None, None)
    return Span(at(value) or 0.0, at(baseline), *ends)


def write_run_page(run: Run, contents: Contents, curves: Mapping[str, str]) -> Path:
    """Write the page of a run: one file, with all pictures in it.

    Args:
        contents: what its results say.
        curves: the numbers of `log.jsonl` to plot, in this order: name -> heading. A number that the log does
            not have is left out.

    Returns:
        The page.
    """
    about = _about(run)
    plots = _plots(read_log(run.log), curves)
    makers = [run, *contents.made_from]
    pictures = [*_reconstructions(run), *_generated(makers)]
    there = {
        **{group.title: True for group in pictures}, "Reports": contents.reports,
        "Retrieval": contents.retrieval, "Confusion": contents.confusions, "All numbers": contents.groups,
        "Training": plots, "About this run": about,
    }  # fmt: skip
    values = {
        "title": run.folder.name, "lead": about.get("command", ""), "about": about, "plots": plots,
        "pictures": pictures, "headlines": contents.headlines, "groups": contents.groups,
        "reports": contents.reports, "retrieval": contents.retrieval, "confusions": contents.confusions,
        "sections": [name for name, content in there.items() if content], "bars_explained": BARS,
    }  # fmt: skip
    # prompts may be reports
    prompts = [path for path in (maker.samples / GENERATED for maker in makers) if path.exists()]
    return save_page(run.folder / "page", "run.html", values, [*contents.texts_of, *prompts])


def _about(run: Run) -> dict[str, str]:
    provenance: dict[str, Any] = {}
    try:
        provenance = read_provenance(run.provenance)
    except CheckpointError as error:  # the page is of use without it
        say(f"{error}; left out of the page", always=True)
    starts = provenance.get("starts") or [{}]
    about = {"command": " ".join(starts[0].get("command", []))}
    if len(starts) > 1:
        about["started"] = f"{len(starts)} times"
    if commit := starts[-1].get("git_commit"):
        about["commit"] = commit + (" with changes" if starts[-1].get("git_changed") else "")
    packages = starts[-1].get("versions", {})
    about["versions"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {name: value for name, value in about.items() if value}


def _plots(log: list[dict[str, Any]], curves: Mapping[str, str]) -> list[Markup]:
    plots = []
    for name, heading in curves.items():
        points: dict[str, Curve] = {
            event: [
                (line["step"], line[name])
                for line in log
                # older runs log null for a value that was not measured
                if line["event"] == event and _is_number(line.get(name))
            ]
            for event in ("train", "valid")
        }
        if any(points.values()):
            plots.append(plot(heading, points))
    return plots


def _is_number(value: object) -> bool:
    """Whether a value can be plotted: not nan, nor so large that a difference of two is infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def _reconstructions(run: Run) -> list[_Pictures]:
    """Of the held-out split if it was measured, else of the last validation."""
    found = sorted(run.samples.glob("reconstructions-*.png"))
    steps = [path for path in found if "-step-" in path.name]
    groups = []
    for path in [path for path in found if path not in steps] or steps[-1:]:
        tiles = [
            _Tile([shown(above, f"input {n}"), shown(below, f"reconstruction of input {n}")], "")
            for n, ((above, below), _) in enumerate(read_columns(path, 2)[:MOST_TILES], 1)
        ]
        if tiles:
            caption = f"Left: the image. Right: the same through its discrete codes. {_which(path)}."
            groups.append(_Pictures("Reconstructions", caption, tiles, pairs=True))
    return groups[:1]


def _which(path: Path) -> str:
    """Which images a grid of reconstructions shows."""
    split, _, step = path.stem.removeprefix("reconstructions-").partition("step-")
    if step.isdigit():
        return f"The first ones of the validation at step {int(step):,}"
    return f"The first ones of the split {split}"


def _generated(runs: Sequence[Run]) -> list[_Pictures]:
    tiles: list[_Tile] = []
    for run in runs:
        for images, prompt in read_columns(run.samples / GENERATED, 1)[: MOST_TILES - len(tiles)]:
            alt = f"synthetic radiograph, prompt: {prompt}" if prompt else "synthetic radiograph"
            tiles.append(_Tile([shown(image, alt) for image in images], prompt))
    caption = (
        "Generated by the model, each for the prompt under it; the first that were sampled, none selected."
    )
    return [_Pictures("Synthetic radiographs", caption, tiles, pairs=False)] if tiles else []
