"""Errors a user can act on, and how an error becomes a line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

INTERRUPTED = 130
"""Exit code of Ctrl-C: 128 + SIGINT, as shells report it."""
USAGE = 2
"""Exit code of a command line that is wrong, as click has it."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_RIGHTS = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_DETERMINISTIC_KERNEL = " does not have a deterministic implementation"
"""Follows the name of the operation in PyTorch's error, which has no type of its own."""
LINE_LIMIT = 290
"""Characters of one line on stderr, `mu: ` aside."""
LINE_START = 180
"""Of a longer line, as many characters of its beginning are kept, and its end, which says what to do."""


WORD = 64
"""Longest value of a table that a message quotes: a SHA-256 or a DICOM UID fit."""


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


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """A text as one line for a terminal: no control characters, at most `limit` characters.

    Names of files and of classes come from other people: an escape sequence in one would reach the terminal,
    and a line end would fake a line of ours.
    """
    if len(text) > 4 * limit:  # a line end or a letter that is written out is at most four times as long
        text = text[: 2 * limit] + text[-2 * limit :]
    line = "; ".join(part for part in text.split("\n") if part.strip())
    # Cc control, Cf invisible formatting such as a change of the writing direction, Cs half a character,
    # Zl and Zp line ends
    line = "".join(
        f"\\x{ord(c):02x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in line
    )
    if len(line) <= limit:
        return line
    start = LINE_START - LINE_LIMIT + limit
    return f"{line[:start]} ... {line[start + 5 - limit :]}"


def one_line_of(problems: Sequence[str]) -> str:
    """Several problems as one line: the first ones as far as they fit, whole, and how many more there are."""
    line, rest = one_line(problems[0]), len(problems) - 1
    for number, problem in enumerate(problems[1:], 2):
        longer = f"{line}; {one_line(problem)}"
        left = len(problems) - number
        if len(longer) + len(_more(left)) > LINE_LIMIT:
            break
        line, rest = longer, left
    more = _more(rest)
    # alone, the first problem may fill the line
    return (line if len(line) + len(more) <= LINE_LIMIT else one_line(line, LINE_LIMIT - len(more))) + more


def _more(count: int) -> str:
    return f"; and {count:,} more" if count else ""


def printable(text: str) -> str:
    """Any text as a terminal may show it: line feeds and tabs stay, other control characters are written out.

    So that they are valid in JSON as well, as `\\u001b`. Marks that turn the writing direction round are
    written out too, as they make a line show something else than it says.
    """
    return _HIDDEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def quoted(value: str) -> str:
    """A value of a table for a message, if it is one word of at most `WORD` characters; else only its length.

    Where columns were shifted, the text of a report stands in the place of a label or a number, and must not
    come out.
    """
    if len(value) <= WORD and not any(c.isspace() for c in value):
        return repr(value)
    return f"a text of {len(value):,} characters"


class RecipeError(MuError):
    """One or more problems of a recipe, each as `file:line: what`."""


class DataError(MuError):
    """Raw data, shards or a manifest that are missing, damaged or do not fit the request."""


class NoSplitError(DataError):
    """Shards without the split that was asked for."""


class NotTextError(DataError):
    """A file that is neither UTF-8 nor marked UTF-16, where text was expected."""


class CheckpointError(MuError):
    """A run or checkpoint that is missing, damaged or belongs to another model."""


class NotFiniteError(CheckpointError):
    """Loss, gradients or weights became NaN or infinite; the last good checkpoint is kept."""


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
        if error.errno in NO_ROOM:
            return [
                one_line(f"no space left on the disk{where}; free some and run the same command again")
            ], 1
        if error.errno in NO_RIGHTS:
            return [one_line(f"no permission{where}; choose another folder or change its rights")], 1
        if error.errno == errno.ENAMETOOLONG:
            return [one_line(f"a name too long for the file system{where}; choose a shorter one")], 1
    if isinstance(error, RuntimeError) and NO_DETERMINISTIC_KERNEL in str(error):
        operation = str(error).split(NO_DETERMINISTIC_KERNEL)[0].split()[-1:]
        return [
            one_line(
                f"PyTorch has no deterministic kernel for {' '.join(operation)} on this device; leave out "
                "--deterministic (train.deterministic), and give the run another name with --name"
            )
        ], 1
    return [_unexpected(error, _place(error))], 1


@contextlib.contextmanager
def in_code_of(whom: str, folders: Sequence[Path]) -> Iterator[None]:
    """While the code of others runs: an unforeseen error of theirs names them, and their file and line.

    Args:
        whom: for the message, such as "data set plugin `mine`".
        folders: of their code, or its files.

    Raises:
        DataError: the type of that error and its place, and no more: its message may quote a report.
    """
    try:
        yield
    except MuError:
        raise
    except Exception as error:  # the code of others may raise anything
        of_machine = isinstance(error, OSError) and error.errno in (*NO_ROOM, *NO_RIGHTS, errno.ENAMETOOLONG)
        place = _innermost(error, folders)
        if of_machine or not place:  # which `explain` has a line for
            raise
        raise DataError(f"{whom}: {_unexpected(error, place)}") from error


def _unexpected(error: BaseException, place: str) -> str:
    return f"unexpected {type(error).__name__} in {place}; run again with --debug to see the traceback"


def traceback_text(error: BaseException) -> str:
    """The traceback of an error and of those that led to it, without the messages of foreign ones.

    The message of a parser may quote what it could not read, and that may be a report: of an error that is
    not ours, only type, places and lines of code are shown.
    """
    parts: list[str] = []
    seen: set[int] = set()
    link = ""
    rest: BaseException | None = error
    while rest is not None and id(rest) not in seen:
        seen.add(id(rest))
        frames = "".join(traceback.format_tb(rest.__traceback__))
        kind = type(rest)
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        said = f": {rest}" if isinstance(rest, MuError) else ""
        parts.append(f"Traceback (most recent call last):\n{frames}{name}{said}\n{link}")
        link = "\nThe above error led to the following one:\n\n"
        # also what `raise ... from None` hides: this is for the one who looks for the reason
        rest = rest.__cause__ or rest.__context__
    return "".join(reversed(parts))


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of this package, else of the innermost frame."""
    # cli.py calls every verb and so is in every traceback; it is the place only if nothing else is
    package = [Path(__file__).parent]
    return (
        _innermost(error, package, but="cli.py")
        or _innermost(error, package)
        or _innermost(error)
        or "an unknown place"
    )


def _innermost(error: BaseException, folders: Sequence[Path] | None = None, but: str = "") -> str:
    """File and line of the innermost frame, of those in some folders or files; empty if there is none."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if (folders is None or any(Path(frame.filename).is_relative_to(folder) for folder in folders))
        and Path(frame.filename).name != but
    ]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
