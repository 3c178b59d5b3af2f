"""Errors a user can act on, and how an error becomes a line on stderr and an exit code."""

from __future__ import annotations

import errno
import traceback
import unicodedata
from pathlib import Path

INTERRUPTED = 130
"""Exit code of Ctrl-C: 128 + SIGINT, as shells report it."""


LINE_LIMIT = 290
"""Characters of one line on stderr, `mu: ` aside."""
LINE_START = 180
"""Of a longer line, as many characters of its beginning are kept, and its end, which says what to do."""


class MuError(Exception):
    """A user's mistake or bad data: one line that says what is wrong, where, and what to do.

    The line is clean, whatever names and numbers were put into it: see `one_line`.
    """

    exit_code = 1
    of_all_ranks = False
    """Every rank raises it, after they have told each other."""
    reported = False
    """Another rank has printed the line, or will: one for all ranks, however many there are."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text as one line for a terminal: no control characters, at most `LINE_LIMIT` characters.

    Names of files and of classes come from other people: an escape sequence in one would reach the terminal,
    and a line end would fake a line of ours.
    """
    line = "; ".join(part for part in text.split("\n") if part.strip())
    # Cc control, Cf invisible formatting such as a change of the writing direction, Cs half a character,
    # Zl and Zp line ends
    line = "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in line
    )
    if len(line) <= LINE_LIMIT:
        return line
    return f"{line[:LINE_START]} ... {line[LINE_START + 5 - LINE_LIMIT :]}"


class RecipeError(MuError):
    """One or more problems of a recipe, each on its own line as `file:line: what`."""


class DataError(MuError):
    """Raw data, shards or a manifest that are missing, damaged or do not fit the request."""


class NotTextError(DataError):
    """A file that is neither UTF-8 nor marked UTF-16, where text was expected."""


class CheckpointError(MuError):
    """A run or checkpoint that is missing, damaged or belongs to another model."""


class GroupError(MuError):
    """Ranks that differ, or one that failed, died or hangs."""


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
        return [] if error.reported else [str(error) or type(error).__name__], error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return ["interrupted"], INTERRUPTED
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename is not None else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return [
                one_line(f"no space left on the disk{where}; free some and run the same command again")
            ], 1
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return [one_line(f"no permission{where}; choose another folder or change its rights")], 1
    name = type(error).__name__
    return [f"unexpected {name} in {_place(error)}; run again with --debug to see the traceback"], 1


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of this package, else of the innermost frame."""
    frames = list(traceback.extract_tb(error.__traceback__))
    package = [frame for frame in frames if Path(frame.filename).is_relative_to(Path(__file__).parent)]
    # cli.py calls every verb and so is in every traceback; it is the place only if nothing else is
    inner = [frame for frame in package if Path(frame.filename).name != "cli.py"] or package or frames
    return f"{Path(inner[-1].filename).name}:{inner[-1].lineno}" if inner else "an unknown place"
