"""What a JSON or YAML document may take, known before it is a value: an estimate from the characters of a
JSON, a count of the nodes of a YAML with its aliases written out.

A list of empty lists takes thirty times the bytes of its file, a report hardly more than its own, so that a
bound in bytes either refuses real annotations or lets a small file take many GiB.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from medunifier_cli.errors import DataError

DEPTH = 64
"""Levels of nesting that a document may have; ours have less than ten."""
MEMORY = 13 << 26
"""Estimated bytes that one file may take while it is read and once it is parsed: 832 MiB."""
CONTAINERS = 2_000_000
"""Lists and objects that one file may hold. An annotation of MIMIC-CXR in R2Gen's form has 560,000."""
CONTAINER = 200
"""Bytes of a small list or object, measured on Python 3.11: 64 for `[]`, up to 230 for `{"a": 1}`."""
VALUE = 64
"""Bytes of a short text or a number, and of its place in a list or an object."""
YAML_NODES = 50_000
"""Nodes that a YAML document may have once its aliases are written out; the largest recipe has some 300."""
YAML_CHARACTERS = 2 << 20
"""Length of a YAML document, which takes seconds to read: some 20,000 prompts."""
YAML_NUMBER = 400
"""Characters of a number in YAML; reading one of `1:2:3:...` takes time with the square of them."""
_VALUE = re.compile(r"'.*'", re.DOTALL)
_FOUR = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")


class OverBudgetError(DataError):
    """A document that would take more than `mu` lets one file take; the message has no name of a file."""


class Budget:
    """What is left for a file whose parts are parsed one after the other, and kept.

    Args:
        copies: how often the parser holds the characters beside the values that it makes of them.
    """

    left: int
    """Estimated bytes that further parts may take."""

    def __init__(self, copies: int = 1) -> None:
        self.left, self._containers, self._copies = MEMORY, CONTAINERS, copies

    def spend(self, part: bytes | str) -> None:
        """Count a part before it is parsed.

        Raises:
            OverBudgetError: it takes more than is left.
        """
        raw = part if isinstance(part, bytes) else part.encode(errors="surrogatepass")
        brackets, commas = raw.count(b"[") + raw.count(b"{"), raw.count(b",")
        self._containers -= brackets
        if self._containers < 0:
            raise OverBudgetError(f"holds more than {CONTAINERS:,} lists and objects")
        characters = len(part) * (self._copies + _width(raw))
        self.left -= characters + CONTAINER * brackets + VALUE * commas
        if self.left < 0:
            raise OverBudgetError(f"would take more than {MEMORY >> 20} MiB of memory")


def _width(raw: bytes) -> int:
    """Bytes that Python may keep for each character of a text: as many as the widest one of it needs."""
    if _FOUR.search(raw):
        return 4
    return 1 if raw.isascii() and b"\\u" not in raw else 2


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings lie in one another more than `levels` deep."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def has_lone_surrogate(value: Any) -> bool:
    """Whether a text in it cannot be written as UTF-8."""
    return any(re.search("[\ud800-\udfff]", text) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            rest.extend((*item.keys(), *item.values()))
        elif isinstance(item, list):
            rest.extend(item)


def _children(parent: Any) -> Any:
    return parent.values() if isinstance(parent, dict) else parent


def yaml_value(text: str) -> Any:
    """The value of a YAML document; text that is none, or larger than one of ours, is a `yaml.YAMLError`."""
    with yaml_loader(text) as loader:
        node = compose_yaml(loader)
        return construct_yaml(loader, node) if node is not None else None


@contextlib.contextmanager
def yaml_loader(text: str) -> Iterator[yaml.SafeLoader]:
    """A loader of one YAML document.

    Raises:
        yaml.YAMLError: characters that YAML does not allow, or too many.
    """
    if len(text) > YAML_CHARACTERS:
        raise yaml.YAMLError(f"longer than {YAML_CHARACTERS:,} characters")
    loader = yaml.SafeLoader(text)
    try:
        yield loader
    finally:
        loader.dispose()


def compose_yaml(loader: yaml.SafeLoader) -> yaml.Node | None:
    """The nodes of a loader's single document, whose size with all aliases written out is bounded.

    Raises:
        yaml.YAMLError: no YAML, or larger or deeper than a document of ours can be.
    """
    compose, left, depth = loader.compose_node, YAML_NODES, 0

    def counted(parent: yaml.Node | None, index: int) -> yaml.Node | None:
        nonlocal left, depth
        left, depth = left - 1, depth + 1
        if left < 0:  # at once: a list of a million numbers takes a minute to compose
            raise yaml.YAMLError("too large")
        if depth > DEPTH + 1:
            raise yaml.YAMLError("too deep")
        node = compose(parent, index)
        depth -= 1
        return node

    loader.compose_node = counted  # type: ignore[method-assign]
    try:
        node = loader.get_single_node()
    except RecursionError:
        raise yaml.YAMLError("too deep") from None
    if node is not None:
        _expanded_size(node, {}, 0)
    return node


def construct_yaml(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """The value of a node that `compose_yaml` returned, or of one below it.

    Raises:
        yaml.YAMLError: it has none, or a text that cannot be written as UTF-8.
    """
    try:
        value = loader.construct_object(node, deep=True)  # type: ignore[no-untyped-call]
    except yaml.YAMLError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as failure:
        # PyYAML builds numbers and dates without checking them first
        raise yaml.YAMLError("a value that is none of its type") from failure
    if has_lone_surrogate(value):
        raise yaml.YAMLError(r"half a character, \ud800 to \udfff alone")
    return value


def yaml_reason(failure: yaml.YAMLError) -> str:
    """What is wrong with a document, without what it says."""
    if isinstance(failure, yaml.reader.ReaderError):
        return "a character that YAML does not allow"
    what = getattr(failure, "problem", None) or (str(failure).splitlines() or ["damaged"])[0]
    return without_values(what)


def without_values(message: str) -> str:
    """A library's message without what it quotes, which may be of a report."""
    return _VALUE.sub("...", message)


def _expanded_size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of nodes below and with this one; a node that several aliases name counts each time."""
    if depth > DEPTH:
        raise yaml.YAMLError("too deep")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = YAML_NODES + 1  # met again below itself: it would be endless
    size = 1
    if isinstance(node, yaml.ScalarNode):
        size += len(node.value) // 256  # a long text that a thousand aliases name is large as well
        if len(node.value) > YAML_NUMBER and not node.tag.endswith((":str", ":binary")):
            raise yaml.YAMLError("too long a number")
    elif isinstance(node, yaml.MappingNode):
        size += sum(_expanded_size(part, known, depth + 1) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded_size(part, known, depth + 1) for part in node.value)
    if size > YAML_NODES:
        raise yaml.YAMLError("too large")
    known[id(node)] = size
    return size
