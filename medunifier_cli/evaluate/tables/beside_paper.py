"""Compare runs with the paper's tables; every number of a run comes from one of its result files.

A run counts with its own results and those of the runs made from it (`mu finetune`, `mu fit-prior`). It fills
the rows whose objectives its recipe has; cells that were not measured stay empty.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medunifier_cli.checkpoint.lineage import base_of, made_from, recipe_of
from medunifier_cli.evaluate.render import number
from medunifier_cli.evaluate.tables.paper_values import TABLES, Measure, PaperTable, Row
from medunifier_cli.files import read_text
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run

HEADER = ("method", "measure", "best other", "paper")


@dataclass(frozen=True)
class Section:
    """One table of the paper, ready to print."""

    title: str
    rows: list[list[str]]
    """A header, then one row per method and measure."""
    filled: int
    """Number of cells with a number of a run."""


@dataclass
class Evidence:
    """One run with all results that count for it."""

    name: str
    weights: Mapping[str, float] | None
    """Weight of every active objective, from its recipe or its base run's; None if unknown."""
    results: list[tuple[Path, dict[str, Any]]]
    """Newest first."""
    notes: list[str] = field(default_factory=list)


def read_evidence(run: Run) -> Evidence:
    """Read the results of a run and of the runs made from it; notes say what is unknown."""
    out = Evidence(run.folder.name, None, [])
    base = base_of(run)
    recipe = recipe_of(base) if base is not None else None
    if isinstance(recipe, PretrainRecipe):
        out.weights = recipe.objectives.weights()
    else:
        reason = (
            f"the run {run.folder} was made from is gone" if base is None else f"{base.folder} has no recipe"
        )
        out.notes.append(f"{reason}; its objectives are unknown")
    paths = [path for one in [run, *made_from(run)] for path in one.results.glob("*.json")]
    paths.sort(key=lambda path: (-path.stat().st_mtime, str(path)))
    out.results = [(path, json.loads(read_text(path))) for path in paths]
    return out


def sections(runs: Sequence[Evidence], baselines: bool = False) -> list[Section]:
    """All tables of the paper, with a column for each run.

    Args:
        baselines: add the rows of other methods; otherwise only their best number is shown.
    """
    return [_section(table, runs, baselines) for table in TABLES]


def unmatched_runs(runs: Sequence[Evidence]) -> list[str]:
    """One line for each run whose objectives are those of no row of the paper."""
    rows = [row for table in TABLES for row in table.rows]
    lines = []
    for run in runs:
        if run.weights is not None and not any(_fits(row, run) for row in rows):
            weights = ", ".join(f"{name.upper()} {weight:g}" for name, weight in run.weights.items())
            lines.append(f"{run.name}: its objectives ({weights or 'none'}) match no row of the paper")
    return lines


def _section(table: PaperTable, runs: Sequence[Evidence], baselines: bool) -> Section:
    rows = [[*HEADER, *(run.name for run in runs)]]
    filled = 0
    for row in table.rows:
        if row.fits is None and not baselines:
            continue
        for column, measure in enumerate(table.measures):
            cells = [_cell(measure, run) if _fits(row, run) else "" for run in runs]
            filled += sum(cell != "" for cell in cells)
            best = _best_other(table, column) if row.fits is not None else ""
            rows.append([row.name, measure.name, best, number(row.values[column], decimals=1), *cells])
    return Section(f"Table {table.number}: {table.title}", rows, filled)


def _fits(row: Row, run: Evidence) -> bool:
    return row.fits is not None and run.weights is not None and row.fits.fits(run.weights)


def _cell(measure: Measure, run: Evidence) -> str:
    ending = re.compile(rf"(^|[ ,]){re.escape(measure.metric)}$", re.IGNORECASE)
    matches: list[tuple[Path, float]] = []
    for path, result in run.results:
        if result["task"] != measure.task or result["dataset"] != measure.dataset:
            continue
        if measure.split and result["split"] != measure.split:
            continue
        if measure.fraction is not None and not _as_the_paper_tunes(result, measure.fraction):
            continue
        value = next((m["value"] for m in result["metrics"] if ending.search(m["name"])), None)
        if value is not None:
            matches.append((path, value))
    if not matches:
        return ""
    newest, value = matches[0]
    if len(matches) > 1:
        run.notes.append(f"{measure.name}: {len(matches)} results, the newest counts: {newest}")
    return number(value * measure.scale, decimals=1)


def _as_the_paper_tunes(result: Mapping[str, Any], fraction: float) -> bool:
    """Whether the whole model was fine-tuned on this share of the train split; a probe is not comparable."""
    share = result.get("fraction")
    return isinstance(share, int | float) and math.isclose(share, fraction) and not result.get("frozen")


def _best_other(table: PaperTable, column: int) -> str:
    values = [row.values[column] for row in table.rows if row.fits is None]
    published = [value for value in values if value is not None]
    if not published:
        return ""
    best = min(published) if table.measures[column].lower_is_better else max(published)
    return number(best, decimals=1)
