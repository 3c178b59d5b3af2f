"""The fenced blocks of README.md, CONTRIBUTING.md and docs/, the comment above each, and its commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.folders import ROOT

RUN = ("bash", "python", "yaml", "toml")
"""Languages of the blocks that are run, read or written to the file they name."""
SHOWN = ("text", "zsh", "fish")
"""What a program prints, trees, citations; and other shells, whose lines differ from bash's by one word."""
MARKS = re.compile(r"^<!-- (not run|run by|slow): (.+?) -->", re.MULTILINE)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|toml|yaml))\b")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        mark: `not run`, `run by` or `slow`, from the HTML comment on the line above; empty without one.
        reason: why it is not run, the test that runs it, or what takes so long.
        file: the file that a comment in its first line names; empty without one.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        found = FILE.match(self.text)
        return found[1] if found else ""


def pages() -> list[str]:
    """The pages whose blocks are run, relative to the root."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in paths]


def blocks(page: str) -> list[Block]:
    """The blocks of a page in order."""
    return list(blocks_of((ROOT / page).read_text(encoding="utf-8"), page))


def blocks_of(markdown: str, page: str) -> Iterator[Block]:
    for match in FENCE.finditer(markdown):
        before = markdown[: match.start()].splitlines()
        found = MARKS.fullmatch(before[-1].strip()) if before else None
        indent, language, text = match.groups()
        lines = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        mark, reason = found.groups() if found else ("", "")
        yield Block(page, len(before) + 1, language, lines, mark, reason)


def commands(code: str) -> list[list[str]]:
    """The words of each call in a block of bash, without comments, redirections and assignments before it."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word.strip("|&;()"):
                words.append(word)
                continue
            if words:
                found.append(plain(words))
            words = []
    return [words for words in found if words]


def plain(words: list[str]) -> list[str]:
    """Words of a call up to a redirection; what only starts it (`srun ...`, `WORLD_SIZE=1`) is left out."""
    for place, word in enumerate(words):
        if set(word) <= set("<>"):
            words = words[:place]
            break
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if words and Path(words[0]).name in ("srun", "torchrun"):
        for place, word in enumerate(words):
            if Path(word).name == "mu" or word == "medunifier_cli":
                return ["mu", *words[place + 1 :]]
    return words


def mu_calls(code: str) -> list[list[str]]:
    """The words after `mu` of each call of it in a block of bash."""
    return [words[1:] for words in commands(code) if Path(words[0]).name == "mu"]
