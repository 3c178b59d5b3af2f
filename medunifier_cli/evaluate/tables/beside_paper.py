"""The paper's tables with these runs beside them: each number of ours comes from a result file.

A run brings its own results and those of the runs made from it (`mu finetune`, `mu fit-prior`). It stands in
the rows whose objectives its recipe has; what was not measured stays empty.
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
from medunifier_cli.evaluate.tables.paper_values import TABLES, Measure, Objectives, PaperTable
from medunifier_cli.recipe.schema import ObjectivesConfig, PretrainRecipe
from medunifier_cli.run.record import Run

HEADER = ("method", "measure", "best other", "paper")


@dataclass(frozen=True)
class Section:
    """One table as it is printed."""

    title: str
    rows: list[list[str]]
    """A header, then one row per cell of the paper."""
    filled: int
    """Cells that a run has a number for."""


@dataclass
class Measured:
    """What one run brings."""

    name: str
    weights: ObjectivesConfig | None
    """Of its recipe, or of the run it was made from; None where that is not known."""
    results: list[tuple[Path, dict[str, Any]]]
    """Newest first."""
    notes: list[str] = field(default_factory=list)


def measured(run: Run) -> Measured:
    """Results of a run and of the runs made from it; what cannot be told is noted."""
    out = Measured(run.folder.name, None, [])
    base = base_of(run)
    recipe = recipe_of(base) if base is not None else None
    if isinstance(recipe, PretrainRecipe):
        out.weights = recipe.objectives
    else:
        where = (
            f"the run {run.folder} was made from is gone" if base is None else f"{base.folder} has no recipe"
        )
        out.notes.append(f"{where}; its objectives are not known")
    paths = [path for one in [run, *made_from(run)] for path in one.results.glob("*.json")]
    paths.sort(key=lambda path: (-path.stat().st_mtime, str(path)))
    out.results = [(path, json.loads(path.read_text())) for path in paths]
    return out


def sections(runs: Sequence[Measured], baselines: bool = False) -> list[Section]:
    """All tables of the paper with a column per run.

    Args:
        baselines: rows of the other methods too; otherwise only their best number.
    """
    return [_section(table, runs, baselines) for table in TABLES]


def strangers(runs: Sequence[Measured]) -> list[str]:
    """Runs whose objectives stand in no row of the paper, one line each."""
    rows = [row for table in TABLES for row in table.rows]
    return [
        f"{run.name}: its objectives (ITC {run.weights.itc:g}, ITM {run.weights.itm:g}, ITG "
        f"{run.weights.itg:g}, TIG {run.weights.tig:g}) are those of no row of the paper"
        for run in runs
        if run.weights and not any(_fits(row.fits, run.weights) for row in rows)
    ]


def _section(table: PaperTable, runs: Sequence[Measured], baselines: bool) -> Section:
    rows = [[*HEADER, *(run.name for run in runs)]]
    filled = 0
    for row in table.rows:
        if row.fits is None and not baselines:
            continue
        for column, measure in enumerate(table.measures):
            cells = [_cell(measure, run) if _fits(row.fits, run.weights) else "" for run in runs]
            filled += sum(cell != "" for cell in cells)
            best = _best_other(table, column) if row.fits is not None else ""
            rows.append([row.name, measure.name, best, _number(row.values[column]), *cells])
    return Section(f"Table {table.number}: {table.title}", rows, filled)


def _fits(row: Objectives | None, weights: ObjectivesConfig | None) -> bool:
    if row is None or weights is None or not weights.itc:
        return False
    same = bool(weights.itm) == row.itm and bool(weights.itg) == row.itg
    if row.tig is None:
        return same and weights.tig > 0
    return same and math.isclose(weights.tig, row.tig)


def _cell(measure: Measure, run: Measured) -> str:
    end = re.compile(rf"(^|[ ,]){re.escape(measure.metric)}$", re.IGNORECASE)
    found: list[tuple[Path, float]] = []
    for path, result in run.results:
        if result["task"] != measure.task or result["dataset"] != measure.dataset:
            continue
        if measure.split and result["split"] != measure.split:
            continue
        if measure.fraction is not None and not _as_the_paper_tunes(result, measure.fraction):
            continue
        value = next((m["value"] for m in result["metrics"] if end.search(m["name"])), None)
        if value is not None:
            found.append((path, value))
    if len(found) > 1:
        run.notes.append(f"{measure.name}: {len(found)} results, the newest counts: {found[0][0]}")
    return _number(found[0][1] * measure.scale) if found else ""


def _as_the_paper_tunes(result: Mapping[str, Any], fraction: float) -> bool:
    """Whether the whole model was fine-tuned, on this share of the train split; a probe is another thing."""
    share = result.get("fraction")
    return isinstance(share, int | float) and math.isclose(share, fraction) and not result.get("frozen")


def _best_other(table: PaperTable, column: int) -> str:
    others = [row.values[column] for row in table.rows if row.fits is None]
    known = [value for value in others if value is not None]
    if not known:
        return ""
    return _number(min(known) if table.measures[column].lower_is_better else max(known))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
