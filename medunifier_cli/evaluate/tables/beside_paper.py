"""Compare runs with the paper's tables; every number of a run comes from one of its result files.

A run counts with its own results and those of the runs made from it (`mu finetune`, `mu fit-prior`). It fills
the rows whose data set and objectives, with their weights, are those of its recipe. A cell stays empty unless
a result records everything that the column demands; for results that come near, a note says what differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medunifier_cli.checkpoint.lineage import base_of, made_from, of_these_weights, recipe_of
from medunifier_cli.evaluate.render import number
from medunifier_cli.evaluate.results import read_result
from medunifier_cli.evaluate.tables.demands import differences
from medunifier_cli.evaluate.tables.paper_values import TABLES, TRAINED_ON, Measure, PaperTable, Row
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
    trained_on: str = TRAINED_ON
    """Data set that the model was pre-trained on."""
    left_out: list[str] = field(default_factory=list)
    """Results that came near a cell of the paper's tables, and what differs; `sections` fills it."""


@dataclass(frozen=True)
class _Match:
    """A number of a run for a column, and what keeps it out of there."""

    path: Path
    value: float
    differs: list[str]


def read_evidence(run: Run) -> Evidence:
    """Read the results of a run and of the runs made from it; notes say what is unknown."""
    out = Evidence(run.folder.name, None, [])
    base = base_of(run)
    recipe = recipe_of(base) if base is not None else None
    if isinstance(recipe, PretrainRecipe):
        out.weights, out.trained_on = recipe.objectives.weights(), recipe.data.dataset
    else:
        reason = (
            f"the run {run.folder} was made from is gone" if base is None else f"{base.folder} has no recipe"
        )
        out.notes.append(f"{reason}; its objectives are unknown")
    paths = [path for one in [run, *made_from(run)] for path in one.results.glob("*.json")]
    paths.sort(key=lambda path: (-path.stat().st_mtime, str(path)))
    for path in paths:
        result = read_result(path)
        if base is None or of_these_weights(base, result):
            out.results.append((path, result))
        else:
            out.notes.append(f"{path}: left out, as it is of other weights than those of {base.folder.name}")
    return out


def sections(runs: Sequence[Evidence], baselines: bool = False) -> list[Section]:
    """All tables of the paper, with a column for each run.

    Args:
        baselines: add the rows of other methods; otherwise only their best number is shown.
    """
    for run in runs:
        run.left_out = _left_out(run)
    return [_section(table, runs, baselines) for table in TABLES]


def unmatched_runs(runs: Sequence[Evidence]) -> list[str]:
    """One line for each run that fits no row of the paper, or of a table that it has a result for."""
    lines = []
    for run in runs:
        if run.weights is None:
            continue
        without = [table for table in TABLES if not any(_fits(row, run) for row in table.rows)]
        missed = [table.number for table in without if any(_matches(m, run) for m in table.measures)]
        if run.trained_on != TRAINED_ON:
            lines += [f"{run.name}: pre-trained on {run.trained_on}, the paper's rows on {TRAINED_ON}"]
        elif missed or len(without) == len(TABLES):
            where = "the paper" if len(without) == len(TABLES) else _named(missed)
            weights = ", ".join(f"{name.upper()} {weight:g}" for name, weight in run.weights.items())
            lines.append(f"{run.name}: its objectives ({weights or 'none'}) match no row of {where}")
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
    if row.fits is None or run.weights is None or run.trained_on != TRAINED_ON:
        return False
    return row.fits.fits(run.weights)


def _cell(measure: Measure, run: Evidence) -> str:
    matches = [match for match in _matches(measure, run) if not match.differs]
    if not matches:
        return ""
    newest = matches[0]
    if len(matches) > 1:
        run.notes.append(f"{measure.name}: {len(matches)} results, the newest counts: {newest.path}")
    return number(newest.value * measure.scale, decimals=1)


def _matches(measure: Measure, run: Evidence) -> list[_Match]:
    """Results with a number of this name on this data set, however it was measured; newest first."""
    ending = re.compile(rf"(^|[ ,]){re.escape(measure.metric)}$", re.IGNORECASE)
    found = []
    for path, result in run.results:
        if result["task"].split("-")[0] != measure.task or result["dataset"] != measure.dataset:
            continue
        value = next((m["value"] for m in result["metrics"] if ending.search(m["name"])), None)
        if value is not None:
            found.append(_Match(path, value, differences(measure.demands, result)))
    return found


def _left_out(run: Evidence) -> list[str]:
    """One line for each result that is in no table, though it would fill an empty cell but for some facts."""
    tables = [table for table in TABLES if any(_fits(row, run) for row in table.rows)]
    used: set[Path] = set()
    near: dict[tuple[Path, str], list[str]] = {}
    for table in tables:
        nearest: dict[Path, tuple[bool, list[str]]] = {}
        for measure in table.measures:
            matches = _matches(measure, run)
            filled = any(not match.differs for match in matches)
            used |= {match.path for match in matches if not match.differs}
            for match in matches:
                if match.path not in nearest or len(match.differs) < len(nearest[match.path][1]):
                    nearest[match.path] = (filled, match.differs)
        for path, (filled, differs) in nearest.items():
            if not filled:
                near.setdefault((path, "; ".join(differs)), []).append(table.number)
    return [
        f"{path}: not in {_named(numbers)}: {differs}"
        for (path, differs), numbers in near.items()
        if path not in used
    ]


def _named(tables: Sequence[str]) -> str:
    return f"table{'s' if len(tables) > 1 else ''} {' and '.join(tables)}"


def _best_other(table: PaperTable, column: int) -> str:
    values = [row.values[column] for row in table.rows if row.fits is None]
    published = [value for value in values if value is not None]
    if not published:
        return ""
    best = min(published) if table.measures[column].lower_is_better else max(published)
    return number(best, decimals=1)
