"""What a value of a table means: labels, splits, and ids that a spreadsheet has turned into numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from medunifier_cli.data.contract import DataError, quoted

__all__ = ["LABELS", "SPLITS", "SYNTHETIC", "class_names", "label_of", "split_names", "spreadsheet_ids"]

LABELS: Mapping[str, float | None] = {
    "1": 1.0, "1.0": 1.0, "yes": 1.0, "true": 1.0, "positive": 1.0, "y": 1.0,
    "0": 0.0, "0.0": 0.0, "no": 0.0, "false": 0.0, "negative": 0.0, "n": 0.0,
    "-1": -1.0, "-1.0": -1.0, "uncertain": -1.0,
    "": None, "nan": None, "na": None, "n/a": None, "none": None, "null": None,
}  # fmt: skip
"""Value in lower case -> 1 positive, 0 negative, -1 uncertain, None blank."""
BLANK = ("nan", "na", "n/a", "null")
"""In lower case, what programs write for no value; `none` may well be the name of a class."""
SPLITS = {
    "train": "train", "training": "train", "val": "valid", "valid": "valid", "validate": "valid",
    "validation": "valid", "dev": "valid", "test": "test", "testing": "test",
}  # fmt: skip
SYNTHETIC = "synthetic:"
"""How the column `origin` begins for an image that a model has sampled, as `mu synthesize` writes it. Any
other origin, such as the name of a hospital, says nothing here."""
MOST_CLASSES = 100
"""Different names that a column of classes may hold; more are a text or an id."""
NUMBER = re.compile(r"(\d+)\.0+")
ROUNDED = re.compile(r"\d\.\d+[eE]\+\d+")
SPLIT = re.compile(r"[A-Za-z0-9_-]+")


def label_of(value: str, where: str) -> float | None:
    """A label.

    Raises:
        DataError: anything else.
    """
    try:
        return LABELS[value.lower()]
    except KeyError:
        raise DataError(
            f"{where}: {quoted(value)} is no label; known are 1, 0, -1, blank, yes, no, y, n, true, "
            "false, positive, negative, uncertain"
        ) from None


def class_names(value: str) -> list[str]:
    """`Effusion|Edema` -> both; NIH's form of several labels in one column. Of a blank, none."""
    names = [name for part in value.split("|") if (name := " ".join(part.split()))]
    return [name for name in names if name.lower() not in BLANK]


def split_names(values: Iterable[str], mapping: str, shown: str) -> dict[str, str]:
    """Each value of the column of splits -> train, valid, test or a name of its own.

    Args:
        values: all different ones.
        mapping: the user's, `0=train,1=valid`; empty for the usual names.

    Raises:
        DataError: a value that nobody has assigned, or no name of a split.
    """
    given = {}
    for part in filter(None, (part.strip() for part in mapping.split(","))):
        value, equals, name = part.partition("=")
        if not equals or not SPLIT.fullmatch(name):
            raise DataError(f"-o splits={mapping}: expected VALUE=SPLIT,... such as 0=train,1=valid,2=test")
        given[value.strip()] = SPLITS.get(name.lower(), name)
    names = {}
    for value in sorted(values):
        name = given.get(value) or SPLITS.get(value.lower()) or value
        if not given and re.fullmatch(r"\d+", value):
            raise DataError(
                f"{shown}: the column of splits holds numbers ({value}, ...): say what each is, "
                "for example -o splits=0=train,1=train,2=valid,3=test"
            )
        if value and not SPLIT.fullmatch(name):
            raise DataError(
                f"{shown}: {quoted(value)} is no name of a split; name one with -o splits=VALUE=train"
            )
        if given and value and value not in given and value.lower() not in SPLITS:
            raise DataError(
                f"{shown}: -o splits={mapping} says nothing of {quoted(value)}; add {value}=SPLIT to it"
            )
        names[value] = name
    return names


def spreadsheet_ids(values: Sequence[str], shown: str, column: str) -> bool:
    """Whether a column of ids was saved as decimal numbers, `7.0` for `7`; then all are read as whole ones.

    Raises:
        DataError: ids in scientific notation, whose last digits are lost.
    """
    rounded = next((value for value in values if ROUNDED.fullmatch(value)), None)
    if rounded is not None:
        raise DataError(
            f"{shown}: {column} holds {rounded}, an id that a spreadsheet has rounded: its end is lost"
        )
    filled = [value for value in values if value]
    numbers = [value for value in filled if NUMBER.fullmatch(value)]
    return bool(numbers) and all(value.isdigit() or NUMBER.fullmatch(value) for value in filled)


def whole_number(value: str) -> str:
    """`7.0` -> `7`."""
    match = NUMBER.fullmatch(value)
    return match[1] if match else value
