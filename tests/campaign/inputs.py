"""Damaged inputs: seeded mutations of a valid file's bytes, and of its structure by hypothesis."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Edit = tuple[int, str, Any]
"""Which node, what is done to it, and with what."""

ODD = (
    "",
    "\0",
    "\ud800",
    "\u2028",
    "\x1b[31m",
    "-1",
    "1e999",
    "nan",
    "9" * 400,
    "!!int ''",
    "!!timestamp x",
    "../..",
    "x" * 5000,
    "!!binary x",
    "&a [*a]",
    "null",
    "\ufeff",
)
NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**300, 10**400, 1e308, float("nan"), float("inf"), 0.5)
WORDS = (
    b"0",
    b"-1",
    b"99999999999999999999",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\x00",
    b"{",
    b"]",
    b'"',
    b"\n",
    b"\x1b]0;x\x07",
    b"\xe2\x80\xa8",
    b"<!ENTITY a '&b;'>",
    b"[" * 2000,
    b"nan",
    b"\\ud800",
    b",",
    b"\xff" * 8,
)


def junk() -> st.SearchStrategy[Any]:
    """A value that is hardly what a reader expects."""
    simple = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.sampled_from(ODD),
        st.integers(-3, 10),
        st.text(max_size=6),
    )
    deep = st.integers(2, 1500).map(_nested)
    return st.one_of(
        simple, st.lists(simple, max_size=3), st.dictionaries(st.text(max_size=3), simple, max_size=2), deep
    )


def _nested(levels: int) -> Any:
    value: Any = []
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


EDITS = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.sampled_from(("set", "set", "set", "drop", "rename", "add", "twice", "wrap")),
        junk(),
    ),
    min_size=1,
    max_size=3,
)


def draw_edits(count: int, number: int) -> list[list[Edit]]:
    """`count` lists of edits, the same for the same number."""
    drawn: list[list[Edit]] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def collect(edits: list[Edit]) -> None:
        drawn.append(edits)

    collect()
    return drawn


def restructure(content: bytes, suffix: str, edits: Sequence[Edit], draw: random.Random) -> bytes | None:
    """The document with its structure changed, None where the suffix names none that is known."""
    try:
        return FORMS[suffix](content, edits, draw)
    except (KeyError, RecursionError, yaml.YAMLError):
        return None


def edited(document: Any, edits: Sequence[Edit]) -> Any:
    """A copy of a document of mappings and lists, with edits at its nodes."""
    document = {"": json.loads(json.dumps(document))}
    for number, how, drawn in edits:
        # a copy: the same edits come again for other documents, and a value must not end up within itself
        value = _copy(drawn)
        places = _places(document)
        parent, key = places[number % len(places)]
        if how == "set":
            parent[key] = value
        elif how == "wrap":
            parent[key] = [parent[key]]
        elif how == "drop" and len(places) > 1 and parent is not document:
            del parent[key]
        elif how == "rename" and isinstance(parent, dict) and parent is not document:
            parent[str(value)[:20]] = parent.pop(key)
        elif how == "add" and isinstance(parent[key], dict):
            parent[key][str(number)] = value
        elif how == "add" and isinstance(parent[key], list):
            parent[key].append(value)
        elif how == "twice" and isinstance(parent, list):
            parent.append(_copy(parent[key]))
    return document[""]


def _copy(value: Any) -> Any:
    """A copy of mappings and lists, however deep they are."""
    top = [value]
    rest: list[tuple[Any, Any]] = [(top, 0)]
    while rest:
        parent, key = rest.pop()
        node = parent[key]
        if isinstance(node, dict | list):
            node = parent[key] = node.copy()
            rest += [(node, place) for place in (node if isinstance(node, dict) else range(len(node)))]
    return top[0]


def _places(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every node; long lists by their first entries, so that no part is drowned."""
    found, rest = [], [(document, "")]
    while rest:
        parent, key = rest.pop()
        found.append((parent, key))
        node = parent[key]
        if isinstance(node, dict):
            rest += [(node, name) for name in list(node)[:60]]
        elif isinstance(node, list):
            rest += [(node, place) for place in range(min(len(node), 6))]
    return found


def _dump(document: Any) -> bytes:
    # by hand as json.dumps gives up on documents that are deep
    try:
        return json.dumps(document).encode()
    except (RecursionError, ValueError):
        depth = 1500
        return b'{"a":' * depth + b"1" + b"}" * depth


def _json(content: bytes, edits: Sequence[Edit], draw: random.Random) -> bytes:
    return _dump(edited(json.loads(content), edits))


def _lines(content: bytes, edits: Sequence[Edit], draw: random.Random) -> bytes:
    lines = [line for line in content.split(b"\n") if line] or [b"{}"]
    place = draw.randrange(len(lines))
    lines[place] = _dump(edited(json.loads(lines[place]), edits))
    return b"\n".join(lines) + b"\n"


def _yaml(content: bytes, edits: Sequence[Edit], draw: random.Random) -> bytes:
    document = edited(yaml.safe_load(content), edits)
    text = yaml.safe_dump(document, sort_keys=False)
    if draw.random() < 0.3:  # tags, anchors and aliases, which a dump never holds unquoted
        lines = text.split("\n")
        place = draw.randrange(len(lines))
        lines[place] = lines[place].partition(":")[0] + ": " + draw.choice(ODD).replace("\n", " ")
        text = "\n".join(lines)
    if draw.random() < 0.05:
        text += "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12))
    return text.encode(errors="surrogatepass")


def _table(content: bytes, edits: Sequence[Edit], draw: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8", "replace"))))
    rows = edited(rows[:60], edits)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    for row in rows if isinstance(rows, list) else [rows]:
        writer.writerow([_cell(cell) for cell in (row if isinstance(row, list) else [row])])
    return out.getvalue().encode(errors="surrogatepass")


def _cell(value: Any) -> str:
    try:
        return str(value)[:20_000]
    except (RecursionError, ValueError):
        return "deep"


FORMS: dict[str, Callable[[bytes, Sequence[Edit], random.Random], bytes]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".yaml": _yaml,
    ".csv": _table,
}


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to four changes of bytes: flipped, replaced, inserted, cut out, doubled, or the end cut off."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not data:
            data += draw.choice(WORDS)
            continue
        # half of the changes in the first kilobyte, where heads are
        end = len(data) if draw.random() < 0.5 else min(len(data), 1024)
        place = draw.randrange(end)
        length = draw.choice((1, 2, 8, 64, 1000))
        how = draw.randrange(7)
        if how == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            data[place] = draw.randrange(256)
        elif how == 2:
            data[place:place] = draw.choice(WORDS)
        elif how == 3:
            word = draw.choice(WORDS)
            data[place : place + len(word)] = word
        elif how == 4:
            del data[place : place + length]
        elif how == 5:
            data[place:place] = data[place : place + length]
        else:
            del data[place:]
    return bytes(data)


def damaged(path: Path, content: bytes, edits: Sequence[Edit], draw: random.Random) -> bytes:
    """A damaged version of a valid file: half by structure where its suffix allows, else by bytes."""
    if draw.random() < 0.5:
        changed = restructure(content, path.suffix, edits, draw)
        if changed is not None:
            return changed
    return mutate(content, draw)
