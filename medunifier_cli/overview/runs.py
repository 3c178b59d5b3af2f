"""Tell of runs: list them, describe one, and say what a training verb would do with one."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from medunifier_cli.checkpoint.lineage import made_from, pretrained_of, recipe_of
from medunifier_cli.errors import MuError
from medunifier_cli.evaluate.render import render
from medunifier_cli.evaluate.tables.headlines import headline_of
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import last_trained
from medunifier_cli.run.record import Run
from medunifier_cli.run.state import bytes_of, is_trained_now, saved_step

RESULT_OF = {"pretrain": "pretraining", "finetune": "finetune", "fit-prior": "priors"}
"""Stage -> the task that is measured once its training is complete."""
DAY = len("2026-11-28")
UNREADABLE = "?"
"""Stage and data of a run whose recipe is missing or damaged."""


def state_of(run: Run, recipe: Any) -> str:
    """How far a run is, in a word: `complete`, `stopped`, `training` now, or `empty` without a checkpoint."""
    step = saved_step(run)
    if is_trained_now(run):
        return "training"
    measured = recipe is not None and any(run.results.glob(f"{RESULT_OF[recipe.stage]}-*.json"))
    asked = recipe.train.steps if recipe is not None else 0
    if measured or (step and asked and step >= asked):
        return "complete"
    return "stopped" if step else "empty"


def _progress(run: Run, recipe: Any) -> str:
    """The last saved step, and of how many where the recipe says so: `300/720`."""
    step, asked = saved_step(run), recipe.train.steps if recipe is not None else 0
    return f"{step or 0}/{asked}" if asked else str(step or 0)


def data_of(recipe: Any) -> str:
    """The data set that a run is trained on; that of the pre-training run where the recipe names no other."""
    return recipe.data.dataset or "as pre-trained"


def run_rows(runs: Sequence[Run]) -> list[list[object]]:
    """A row for each run under a header, the last trained first, with its headline and its size."""
    rows: list[list[object]] = [["run", "stage", "data", "state", "headline", "step", "trained", "MB"]]
    for run in sorted(runs, key=lambda run: last_trained(run.folder), reverse=True):
        recipe = recipe_of(run)
        known = (recipe.stage, data_of(recipe)) if recipe is not None else (UNREADABLE, UNREADABLE)
        megabytes = round(bytes_of(run.folder) / 1e6)
        told = (state_of(run, recipe), headline_of(run), _progress(run, recipe))
        date = _date(last_trained(run.folder))[:DAY]
        rows.append([run.folder.name, *known, *told, date, megabytes])
    return rows


def run_facts(run: Run) -> list[tuple[str, object]]:
    """What there is to know about one run, by name."""
    recipe = recipe_of(run)
    facts: list[tuple[str, object]] = [("run", str(run.folder))]
    if recipe is None:
        facts.append(("recipe", "none that can be read"))
    else:
        splits = [recipe.data.train, recipe.data.valid, getattr(recipe.data, "test", "")]
        facts += [
            ("stage", recipe.stage),
            ("recipe", recipe.name),
            ("data", data_of(recipe)),
            ("splits", ", ".join(filter(None, splits))),
        ]
        if isinstance(recipe, FinetuneRecipe | PriorRecipe):
            facts.append(("starts from", pretrained_of(recipe) or "the newest pre-training run"))
    facts += [("state", state_of(run, recipe)), ("step", _progress(run, recipe))]
    facts.append(("trained", _date(last_trained(run.folder))))
    made = [other.folder.name for other in made_from(run)]
    facts += [("made from it", ", ".join(made))] if made else []
    facts += [("headline", headline_of(run))] if headline_of(run) else []
    facts.append(("MB", round(bytes_of(run.folder) / 1e6)))
    parts = {path.name: bytes_of(path) for path in sorted(run.folder.iterdir()) if path.is_dir()}
    largest = sorted(parts.items(), key=lambda item: -item[1])[:4]
    facts.append(
        ("most of it", ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in largest if size >= 5e5))
    )
    page = run.folder / "page" / "index.html"
    facts += [("page", str(page))] if page.is_file() else []
    return [(name, value) for name, value in facts if value != ""]


def planned_rows(recipe: Any, run: Run, processes: int, anew: bool) -> list[tuple[str, object]]:
    """What a training verb would do, by name; nothing is changed, and no data are read.

    Args:
        recipe: of any stage, with the run that it starts from filled in.
        processes: ranks on this machine; 0 for one per GPU.
        anew: an existing run is moved aside first.
    """
    step = None if anew else saved_step(run)
    if anew and run.folder.exists():
        start = "new; the run that is there is renamed"
    elif step:
        done = state_of(run, recipe) == "complete"
        start = f"nothing: it is complete, step {step:,}" if done else f"resumes after step {step:,}"
    else:
        start = "new"
    rows: list[tuple[str, object]] = [("run", str(run.folder)), ("start", start)]
    try:
        changes = [] if anew else run.changes(recipe)
    except MuError as error:
        changes = [str(error)]
    rows += [("other settings", ", ".join(changes))] if changes else []
    rows += [
        ("stage", recipe.stage),
        ("recipe", recipe.name),
        ("data", data_of(recipe)),
        ("length", _length(recipe)),
        (
            "batch",
            f"{recipe.train.global_batch} on {processes or 'as many processes as there are GPUs, or one'}",
        ),
    ]
    if isinstance(recipe, FinetuneRecipe | PriorRecipe):
        rows.append(("starts from", pretrained_of(recipe)))
    return rows


def _length(recipe: Any) -> str:
    steps = recipe.train.steps
    return f"{steps:,} steps" if steps else f"{recipe.train.epochs:g} epochs"


def render_facts(facts: Sequence[tuple[str, object]], form: str) -> str:
    """Facts by name: as text a line each; as JSON one object; else a table of two columns."""
    if form == "json":
        return json.dumps(dict(facts), indent=1, ensure_ascii=False)
    if form == "text":
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)
    return render([["what", "value"], *(list(fact) for fact in facts)], form, words=2)


def render_runs(rows: Sequence[Sequence[object]], form: str) -> str:
    """`run_rows` in a format."""
    return render(rows, form, words=5)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
