"""`runs/<name>/page/index.html`: how a run went and what it reached, for a person with a browser."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any

from medunifier_cli.files import read_lines
from medunifier_cli.page.document import facts, grid, save_page
from medunifier_cli.page.plot import Curve, plot
from medunifier_cli.run.record import Run

SHOWN = {
    "total": "Loss, all objectives", "loss": "Loss", "itc": "ITC loss", "itm": "ITM loss", "itg": "ITG loss",
    "tig": "TIG loss", "itc_accuracy": "ITC accuracy in the batch", "itm_accuracy": "ITM accuracy",
    "itg_accuracy": "ITG accuracy, next token", "accuracy": "Accuracy", "auroc": "AUROC",
    "perplexity_top": "Perplexity of the top codebook",
    "perplexity_bottom": "Perplexity of the bottom codebook", "temperature": "ITC temperature",
    "lr": "Learning rate",
}  # fmt: skip
"""Numbers of `log.jsonl` that get a curve, in this order."""


def write_run_page(run: Run, rows: list[list[str]]) -> Path:
    """Losses of the log, the table of results, and the pictures the run has left.

    Pictures are linked where they lie in the run folder, so that the folder as a whole can be moved.

    Args:
        rows: results as a table, the first row its head, the first three columns words.

    Returns:
        The page.
    """
    folder = run.folder / "page"
    parts = [facts(_about(run))]
    if len(rows) > 1:
        parts += ["<h2>Results</h2>", grid(rows, words=3)]
    curves = _curves(read_lines(run.log))
    if curves:
        parts += ["<h2>Training</h2>", '<div class="plots">', *curves, "</div>"]
    for title, paths in _pictures(run).items():
        parts.append(f"<h2>{escape(title)}</h2>")
        for path in paths:
            source = escape(Path(os.path.relpath(path, folder)).as_posix())
            parts.append(
                f'<figure><img class="wide" src="{source}" alt="{escape(f"{title}: {path.stem}")}">'
                f"<figcaption>{escape(path.name)}</figcaption></figure>"
            )
    return save_page(folder, f"Run {run.folder.name}", "\n".join(parts))


def _about(run: Run) -> dict[str, str]:
    provenance: dict[str, Any] = {}
    if run.provenance.exists():
        provenance = json.loads(run.provenance.read_text())
    starts = provenance.get("starts") or [{}]
    about = {"command": " ".join(starts[0].get("command", []))}
    if len(starts) > 1:
        about["started"] = f"{len(starts)} times"
    if commit := starts[-1].get("git_commit"):
        about["commit"] = commit + (" with changes" if starts[-1].get("git_changed") else "")
    packages = starts[-1].get("versions", {})
    about["versions"] = ", ".join(f"{name} {version}" for name, version in packages.items())
    return {name: value for name, value in about.items() if value}


def _curves(log: list[dict[str, Any]]) -> list[str]:
    plots = []
    for name, title in SHOWN.items():
        found: dict[str, Curve] = {
            event: [(line["step"], line[name]) for line in log if line["event"] == event and name in line]
            for event in ("train", "valid")
        }
        found = {event: [p for p in curve if p[1] is not None] for event, curve in found.items()}
        if any(found.values()):
            plots.append(plot(title, found))
    return plots


def _pictures(run: Run) -> dict[str, list[Path]]:
    """The last reconstructions of each split, and the confusion matrices."""
    samples = sorted(run.samples.glob("reconstructions-*.png"))
    steps = [path for path in samples if "-step-" in path.name]
    shown = {
        "Reconstructions, input above": [path for path in samples if path not in steps] or steps[-1:],
        "Confusion matrices": sorted(run.results.glob("*.confusion.png")),
    }
    return {title: paths for title, paths in shown.items() if paths}
