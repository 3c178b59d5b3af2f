"""What may go wrong, and how it is told: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


class MuError(Exception):
    """A user's mistake or bad data: one line that says what is wrong, where, and what to do."""

    exit_code = 1


class RecipeError(MuError):
    """One or more problems of a recipe, each on its own line as `file:line: what`."""


class DataError(MuError):
    """Raw data, shards or a manifest that cannot be used as asked."""


class CheckpointError(MuError):
    """A run or checkpoint that is missing, damaged or of another shape."""


class MissingWeightsError(MuError):
    """Weights that must be fetched before the run, since nothing here touches the network."""


class Stopped(MuError):
    """A signal asked the run to stop; its checkpoint is saved, and the same command goes on from it."""

    exit_code = 75


def explain(error: BaseException) -> tuple[list[str], int]:
    """What the user reads of an error, and the exit code.

    The message of an error that nobody foresaw is left out: it may quote a report, which is patient data.
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
    """File and line of the innermost frame, in our own code where there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)]
    # cli.py calls every verb, and so is in every traceback
    ours = [frame for frame in ours if Path(frame.filename).name != "cli.py"] or ours or list(frames)
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "an unknown place"
