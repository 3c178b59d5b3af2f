"""Errors a user can act on, and how an error becomes a line on stderr and an exit code."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

INTERRUPTED = 130
"""Exit code of Ctrl-C: 128 + SIGINT, as shells report it."""


class MuError(Exception):
    """A user's mistake or bad data: one line that says what is wrong, where, and what to do."""

    exit_code = 1


class RecipeError(MuError):
    """One or more problems of a recipe, each on its own line as `file:line: what`."""


class DataError(MuError):
    """Raw data, shards or a manifest that are missing, damaged or do not fit the request."""


class NotTextError(DataError):
    """A file that is neither UTF-8 nor marked UTF-16, where text was expected."""


class CheckpointError(MuError):
    """A run or checkpoint that is missing, damaged or belongs to another model."""


class MissingWeightsError(MuError):
    """Pre-trained weights that are not on this machine; `mu` never downloads them itself."""


class Stopped(MuError):
    """A signal stopped the run after its checkpoint was saved; the same command resumes from it."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later; the SLURM script requeues on it


def explain(error: BaseException) -> tuple[list[str], int]:
    """The lines a user reads about an error, and the exit code.

    An unexpected error is named by its type and place alone: its message may quote a report, which is patient
    data.
    """
    if isinstance(error, MuError):
        return str(error).splitlines() or [type(error).__name__], error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"], INTERRUPTED
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return [f"no space left on the disk{where}; free some and run the same command again"], 1
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return [f"no permission{where}; choose another folder or change its rights"], 1
    name = type(error).__name__
    return [f"unexpected {name} in {_place(error)}; run again with --debug to see the traceback"], 1


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of this package, else of the innermost frame."""
    frames = list(traceback.extract_tb(error.__traceback__))
    package = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)]
    # cli.py calls every verb and so is in every traceback; it is the place only if nothing else is
    inner = [frame for frame in package if Path(frame.filename).name != "cli.py"] or package or frames
    return f"{Path(inner[-1].filename).name}:{inner[-1].lineno}" if inner else "an unknown place"
