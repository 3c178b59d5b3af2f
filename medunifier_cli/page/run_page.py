"""Write `runs/<name>/page/index.html`: curves, results and pictures of a run, for a browser."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from medunifier_cli.errors import CheckpointError
from medunifier_cli.page.document import facts, grid, save_page
from medunifier_cli.page.plot import Curve, plot
from medunifier_cli.run.log import read_log
from medunifier_cli.run.provenance import read_provenance
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.say import say


def write_run_page(run: Run, rows: list[list[str]], curves: Mapping[str, str]) -> Path:
    """Write the table of results, curves of the log and the pictures that the run has left.

    Pictures are linked by relative paths inside the run folder, so that the whole folder can be moved.

    Args:
        rows: results as a table; the first row is the header, the first three columns hold words.
        curves: the numbers of `log.jsonl` to plot, in this order: name -> heading. A number that the log does
            not have is left out.

    Returns:
        The page.
    """
    folder = run.folder / "page"
    parts = [facts(_about(run))]
    if len(rows) > 1:
        parts += ["<h2>Results</h2>", grid(rows, words=3)]
    plots = _plots(read_log(run.log), curves)
    if plots:
        parts += ["<h2>Training</h2>", '<div class="plots">', *plots, "</div>"]
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


def _plots(log: list[dict[str, Any]], curves: Mapping[str, str]) -> list[str]:
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
    """Whether a value can be plotted: a whole number of 400 digits is more than a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or math.log2(abs(value) or 1) < 1000


def _pictures(run: Run) -> dict[str, list[Path]]:
    """The last reconstructions of each split, and the confusion matrices."""
    samples = sorted(run.samples.glob("reconstructions-*.png"))
    steps = [path for path in samples if "-step-" in path.name]
    shown = {
        "Reconstructions, input above": [path for path in samples if path not in steps] or steps[-1:],
        "Confusion matrices": sorted(run.results.glob("*.confusion.png")),
    }
    return {title: paths for title, paths in shown.items() if paths}
