"""Answers of a model about image files of a person, each with its likeness to the training films; as a table.

n films.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.films.likeness import Likeness, film_features, reference_of, summary
from medunifier_cli.evaluate.films.origin import NOT_FOR_DIAGNOSIS, Origin
from medunifier_cli.evaluate.render import number, render
from medunifier_cli.evaluate.user_images import UserImages, of_files
from medunifier_cli.terminal.table import WIDTH

T = TypeVar("T")
BATCH = 64
"""Films per forward pass."""
GAP = "  "
UNLIKE = "unlike"
FOR_THE_PATH = 30
"""Columns of a terminal that numbers leave to the path after them; a longer path is not cut."""


@dataclass(frozen=True)
class FilmAnswer:
    """What a model says of one film."""

    path: Path
    cells: Mapping[str, object]
    """Column of a table -> a number or a word; the same columns for all films."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """What JSON has instead of the columns."""
    likeness: Likeness | None = None
    """None where nobody asked."""


def answers_of(
    compute: Callable[[UserImages], Sequence[T]], trained: PretrainedRun, paths: Sequence[Path],
    likeness: bool = True, batch: int = BATCH,
) -> Iterator[tuple[Path, T, Likeness | None]]:  # fmt: skip
    """What is computed of each readable file, and its likeness to the training films; in the order of files.

    Args:
        compute: picklable; of a batch of one or more images, a value for each.
        paths: PNG, JPEG or DICOM; unreadable ones are reported on stderr, counted and left out.
        likeness: whether to tell it.

    Raises:
        DataError: no file can be read.
    """
    reference = reference_of(trained) if likeness else None
    size = trained.recipe.data.image_size
    both = partial(_answered, compute, trained, reference is not None)
    for files, (values, feature_nF) in of_files(both, paths, size, trained.batch_size or batch):
        seen: Sequence[Likeness | None] = [None] * len(values)
        if reference is not None and files.paths:  # a batch without a readable file has no features
            seen = reference.of(feature_nF)
        yield from zip(files.paths, values, seen, strict=True)


def _answered(
    compute: Callable[[UserImages], Sequence[T]], trained: PretrainedRun, likeness: bool, files: UserImages
) -> tuple[Sequence[T], NDArray[np.float32]]:
    if not files.paths:
        return [], np.empty((0, 0), np.float32)
    features = film_features(trained, files.image_B1HW) if likeness else np.empty((0, 0), np.float32)
    return compute(files), features


def render_answers(answers: Sequence[FilmAnswer], origin: Origin, form: str) -> str:
    """Answers in one of `terminal.output.FORMATS`, with the origin of all of them.

    JSON has an object for each film, Markdown and CSV a row. As text the path comes last in a row, and is
    never wrapped: what was printed can be copied.
    """
    if form == "json":
        return json.dumps([as_json(answer, origin) for answer in answers], indent=1, ensure_ascii=False)
    if form == "csv":
        return render(_for_programs(answers, origin), form)
    seen = [answer.likeness for answer in answers if answer.likeness is not None]
    unlike = any(one.unlike for one in seen)
    rows: list[list[str]] = [[*answers[0].cells, *([UNLIKE] if unlike else [])]]
    for answer in answers:
        mark = UNLIKE if answer.likeness is not None and answer.likeness.unlike else ""
        rows.append([*map(_cell, answer.cells.values()), *([mark] if unlike else [])])
    names = ["file", *(str(answer.path) for answer in answers)]
    foot = footer(seen, origin)
    if form == "markdown":
        table = render([[name, *row] for name, row in zip(names, rows, strict=True)], form)
        return "\n\n".join([table, *foot])
    return "\n".join([*_with_path_last(rows, names), *foot])


def named(names: Sequence[str]) -> str:
    """The classes that reach a threshold, as a cell; empty where none does."""
    return "; ".join(names)


def footer(likeness: Sequence[Likeness], origin: Origin) -> list[str]:
    """The lines under answers: films unlike the training films, the origin, and what it is not for."""
    said = summary(likeness)
    return [*([said[0].upper() + said[1:] + "."] if said else []), f"From {origin}.", NOT_FOR_DIAGNOSIS]


def as_json(answer: FilmAnswer, origin: Origin) -> dict[str, Any]:
    """The answer with its origin, and `likeness` where it was asked for."""
    seen = {} if answer.likeness is None else {"likeness": answer.likeness.as_json()}
    return {
        "file": str(answer.path), **(answer.more or answer.cells), **seen, "origin": origin.as_json(),
        "note": NOT_FOR_DIAGNOSIS,
    }  # fmt: skip


LAST_COLUMNS = ("unlike", "percentile", "run", "step", "checkpoint", "trained_on", "note")
"""Of CSV, after those of the verb."""


def last_cells(likeness: Likeness | None, origin: Origin) -> list[object]:
    """The cells of `LAST_COLUMNS`."""
    seen = likeness or Likeness(None)
    made_by = (origin.run, origin.step, origin.checkpoint, origin.data)
    return [seen.unlike, seen.percentile, *made_by, NOT_FOR_DIAGNOSIS]


def _for_programs(answers: Sequence[FilmAnswer], origin: Origin) -> list[list[object]]:
    rows: list[list[object]] = [["file", *answers[0].cells, *LAST_COLUMNS]]
    for answer in answers:
        rows.append([str(answer.path), *answer.cells.values(), *last_cells(answer.likeness, origin)])
    return rows


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value) or "-"


def _with_path_last(rows: Sequence[Sequence[str]], names: Sequence[str]) -> list[str]:
    """Aligned lines; columns that do not fit a terminal follow in further tables."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    for column, width in enumerate(widths):
        taken = sum(widths[i] + len(GAP) for i in blocks[-1])
        if blocks[-1] and taken + width > WIDTH - FOR_THE_PATH:
            blocks.append([])
        blocks[-1].append(column)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if lines else []
        for row, name in zip(rows, names, strict=True):
            lines.append(GAP.join([*(row[i].rjust(widths[i]) for i in block), name]))
    return lines
