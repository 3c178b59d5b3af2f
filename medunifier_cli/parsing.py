"""Parse JSON, JSON lines and YAML that anybody may have written: into a declared type, or into one error.

Every file that another program, another version or a damaged disk may have changed comes through here. What a
caller gets back has the type it asked for, so nothing behind this door fails with a KeyError or a TypeError.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar, cast

import msgspec
import yaml

from medunifier_cli.budget import (
    DEPTH,
    Budget,
    OverBudgetError,
    has_lone_surrogate,
    is_deeper,
    without_values,
    yaml_reason,
    yaml_value,
)
from medunifier_cli.errors import DataError, MuError, NotTextError
from medunifier_cli.files import UTF_16, decode_lines, decode_text

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A whole number from 0 that fits 64 bits: sizes, offsets, steps."""
BLOCK = 1 << 20
"""Bytes read at a time."""
MAX_BYTES = 1 << 28
"""Size of the largest document that is read. An annotation of MIMIC-CXR in R2Gen's form has 140 MB."""
PLAIN_BYTES = 1 << 24
"""Size from which JSON is parsed into its declared type straight from the bytes of the file."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, kind: type[T], error: type[MuError] = DataError, advice: str = "") -> T:
    """A JSON file as a value of the type `kind`.

    Args:
        path: of the file.
        kind: what it must hold: a `TypedDict`, a dataclass, or a container such as `dict[str, list[int]]`.
            Keys that a `TypedDict` or a dataclass does not name are ignored.
        error: type of the error.
        advice: what the user can do about a damaged file; ends the message.

    Raises:
        MuError: of the type `error`: the file cannot be read, is no JSON, or holds something else. The
            message names the place in it, and quotes nothing of it.
    """
    return parse_json(read_bytes(path, error, advice), kind, str(path), error, advice)


def parse_json(
    content: bytes | str, kind: type[T], shown: str, error: type[MuError] = DataError, advice: str = ""
) -> T:
    """As `read_json`, for a document that has been read already; `shown` names it in the message."""
    large = isinstance(content, bytes) and len(content) > PLAIN_BYTES and content[:2] not in UTF_16
    try:
        Budget(1 if large else 3).spend(content)
    except OverBudgetError as failure:
        raise _fault(error, shown, str(failure), advice) from None
    if large:
        return _straight(cast("bytes", content), kind, shown, error, advice)
    text = decoded(content, shown, error, advice) if isinstance(content, bytes) else content
    return _parsed(text, kind, shown, error, advice)


def _parsed(text: str, kind: type[T], shown: str, error: type[MuError], advice: str) -> T:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as failure:
        what = f"is no JSON ({failure.msg}, line {failure.lineno}, column {failure.colno})"
        raise _fault(error, shown, what, advice) from None
    except (ValueError, RecursionError):  # a number of thousands of digits; thousands of brackets
        raise _fault(error, shown, "is no JSON of ours (too long a number, or too deep)", advice) from None
    if text.count("[") + text.count("{") > DEPTH and is_deeper(value, DEPTH):
        raise _fault(error, shown, f"is nested more than {DEPTH} levels deep", advice)
    if _SURROGATE.search(text) and has_lone_surrogate(value):
        raise _fault(error, shown, r"holds half a character (\ud800 to \udfff alone)", advice)
    return checked(value, kind, shown, error, advice)


def _straight(content: bytes, kind: type[T], shown: str, error: type[MuError], advice: str) -> T:
    """Parse a large document without a second copy of it, and without what its type does not name."""
    try:
        value = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=kind)
    except msgspec.ValidationError as failure:
        raise _misfit(failure, shown, error, advice) from None
    except (ValueError, RecursionError) as failure:
        found = re.search(r"\(byte \d+\)$", str(failure))
        what = "too deep" if isinstance(failure, RecursionError) else found[0] if found else "cut short"
        raise _fault(error, shown, f"is no JSON ({what.strip('()')})", advice) from None
    if is_deeper(value, DEPTH):
        raise _fault(error, shown, f"is nested more than {DEPTH} levels deep", advice)
    return value


def read_json_lines(path: Path, kind: type[T], error: type[MuError] = DataError, advice: str = "") -> list[T]:
    """All lines of a file of JSON lines, each of the type `kind`; empty lines are skipped.

    Raises:
        MuError: as `read_json`; the message names the first line that is wrong, or with which the file is
            larger than what `mu` reads.
    """
    budget, values = Budget(0), []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(decode_lines(file, str(path)), 1):
                if not line.strip():
                    continue
                budget.spend(line)
                values.append(_parsed(line, kind, f"{path}:{number}", error, advice))
    except OverBudgetError as failure:
        raise _fault(error, f"{path}:{number}", f"up to here, it {failure}", advice) from None
    except NotTextError as failure:
        raise error(f"{failure}{f'; {advice}' if advice else ''}") from None
    except OSError as failure:
        raise _unreadable(path, failure, error, advice) from failure
    except ValueError as failure:  # a zero byte in the name
        raise _fault(error, str(path), "is no name of a file", advice) from failure
    return values


def read_yaml(path: Path, kind: type[T], error: type[MuError] = DataError, advice: str = "") -> T:
    """A YAML file as a value of the type `kind`, see `read_json`."""
    return parse_yaml(read_bytes(path, error, advice), kind, str(path), error, advice)


def parse_yaml(
    content: bytes | str, kind: type[T], shown: str, error: type[MuError] = DataError, advice: str = ""
) -> T:
    """As `read_yaml`, for a document that has been read already."""
    text = decoded(content, shown, error, advice) if isinstance(content, bytes) else content
    try:
        value = yaml_value(text)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = without_values(failure.problem or "damaged")
        raise _fault(error, shown, f"is no YAML ({what}{where})", advice) from None
    except yaml.YAMLError as failure:
        raise _fault(error, shown, f"is no YAML of ours ({yaml_reason(failure)})", advice) from None
    return checked(value, kind, shown, error, advice)


def checked(value: Any, kind: type[T], shown: str, error: type[MuError] = DataError, advice: str = "") -> T:
    """A parsed value as `kind`; no conversion but that of whole numbers where fractions are expected."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as failure:
        raise _misfit(failure, shown, error, advice) from None
    except RecursionError:
        raise _fault(error, shown, "is nested too deep", advice) from None


def read_bytes(
    path: Path, error: type[MuError] = DataError, advice: str = "", limit: int = MAX_BYTES
) -> bytes:
    """All bytes of a file of at most `limit` bytes.

    Raises:
        MuError: of the type `error`: the file cannot be read or is larger.
    """
    try:
        with path.open("rb") as file:
            return bounded(file, limit, str(path), error, advice)
    except OSError as failure:
        raise _unreadable(path, failure, error, advice) from failure
    except ValueError as failure:  # a zero byte in the name
        raise _fault(error, str(path), "is no name of a file", advice) from failure


def bounded(
    file: IO[bytes], limit: int, shown: str, error: type[MuError] = DataError, advice: str = ""
) -> bytes:
    """The rest of an open file, unpacked where it unpacks itself, if that is at most `limit` bytes.

    Raises:
        MuError: of the type `error`: it is more.
    """
    # Block by block: a single `read(limit)` would allocate `limit` bytes before it reads any.
    content = bytearray()
    while block := file.read(min(BLOCK, limit + 1 - len(content))):
        content += block
    if len(content) > limit:
        raise _fault(
            error, shown, f"is larger than {limit:,} bytes, the most that is read of such a file", advice
        )
    return bytes(content)


def decoded(content: bytes, shown: str, error: type[MuError] = DataError, advice: str = "") -> str:
    """Bytes as text, see `files.decode_text`, with an error of the type that a caller asks for."""
    try:
        return decode_text(content, shown)
    except NotTextError as failure:
        raise error(f"{failure}{f'; {advice}' if advice else ''}") from None


def _fault(error: type[MuError], shown: str, what: str, advice: str) -> MuError:
    return error(f"{shown}: {what}{f'; {advice}' if advice else ''}")


def _unreadable(path: Path, failure: OSError, error: type[MuError], advice: str) -> MuError:
    return _fault(error, str(path), f"cannot be read ({failure.strerror or type(failure).__name__})", advice)


def _misfit(failure: msgspec.ValidationError, shown: str, error: type[MuError], advice: str) -> MuError:
    # "Expected `int`, got `str` - at `$.steps`"; of an enumeration msgspec quotes the value
    what, _, place = str(failure).partition(" - at ")
    what = without_values(what).replace("`", "")
    where = place.strip("`").removeprefix("$").removeprefix(".").replace("` in `$", " of ").strip(" .")
    return _fault(error, shown, f"{what[:1].lower()}{what[1:]}{f' at {where}' if where else ''}", advice)
