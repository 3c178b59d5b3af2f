"""Plain English: no phrase that a native reader would stumble over, and comments that say why."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.file_map import ROOT

PHRASES = {
    r"\b(?:goes|go|going) on\b(?! to\b)": "resumes from, continues",
    r"\bgone on with\b": "resumed",
    r"\bso many (?:bytes|of them|seconds|steps)\b|\b(?:first|only) so many\b": "the first N, at most N",
    r"\b(?:is|are) said\b": "is reported, triggers a warning",
    r"\b(?:it|that|which) rings\b|\brings when\b|\bnot ring\b|\"rings\"": "is flagged",
    r"\bfor want of\b": "because there is no",
    r"help=\"(?:Of|Over|In|Only) ": "begin with a noun or an imperative",
    r"\bOf nucleus\b": "Nucleus sampling: ...",
    r"\bstands? more than\b": "tolerates higher ... than",
    r"\bdrawn (?:radiographs?|images)\b": "synthetic, generated or sampled, whichever is meant",
    r"\bin percent unless said\b": "unless stated otherwise",
    r"\bpassed over\b": "skipped",
    r"\bon their way to the model\b": "moved to the device",
    r"\bUndo `": "Load what ... returned",
    r"\bthe road works\b": "the pipeline works end to end",
    r"\b(?:lies|stands|stand|lie) beside\b": "is next to",
}
"""Pattern -> what to say instead."""
FOLDERS = ("docs", "medunifier", "medunifier_cli", "plugins", "recipes", "experiments", "benchmarks")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", ".pre-commit-config.yaml")
SUFFIXES = {".md", ".py", ".yaml"}

COMMENTED = (
    "medunifier_cli/model", "medunifier_cli/model/vqvae", "medunifier_cli/objectives", "medunifier_cli/prior",
    "medunifier_cli/train", "medunifier_cli/distributed", "medunifier_cli/data/loader.py",
)  # fmt: skip
"""Where the mathematics is dense."""
COMMENT_SHARE = 0.06
DIRECTIVE = re.compile(r"#\s*(?:fmt|noqa|type|ruff|mypy)\b\s*:?")


def prose() -> Iterator[tuple[str, int, str]]:
    """Path, line number and text of every line; in decisions.md without the old names that it quotes."""
    paths = [ROOT / name for name in PAGES]
    for folder in FOLDERS:
        paths += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.name == "decisions.md":
            text = re.sub(r"`[^`\n]*`", "", text)
        name = path.relative_to(ROOT).as_posix()
        yield from ((name, number, line) for number, line in enumerate(text.splitlines(), 1))


def comment_lines(text: str) -> int:
    """Lines that hold a comment for people."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return len({t.start[0] for t in tokens if t.type == tokenize.COMMENT and not DIRECTIVE.match(t.string)})


@pytest.mark.parametrize("phrase", PHRASES)
def test_plain_english(phrase: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE if phrase.islower() else 0)
    hits = [f"{name}:{number}: {line.strip()}" for name, number, line in prose() if pattern.search(line)]
    assert not hits, "\n".join([f"say: {PHRASES[phrase]}", *hits])


@pytest.mark.parametrize("name", COMMENTED)
def test_bodies_answer_a_readers_questions(name: str) -> None:
    """Share of lines with a comment that is no directive to a tool."""
    path = ROOT / name
    files = [path] if path.suffix else sorted(path.glob("*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    comments, lines = sum(map(comment_lines, texts)), sum(len(text.splitlines()) for text in texts)
    assert comments / lines >= COMMENT_SHARE, f"{name}: {comments} of {lines:,} lines, {comments / lines:.1%}"


def test_directives_are_no_comments() -> None:
    text = 'a = 1  # why\nb = [  # fmt: skip\n]\n# noqa: E501\nc = "# no"  # type: ignore[x]\n# the reason\n'
    assert comment_lines(text) == 2


def test_a_phrase_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.house.test_prose.ROOT", tmp_path)
    for name in PAGES:
        (tmp_path / name).write_text("It brings the first so many images.\n")
    with pytest.raises(AssertionError, match=r"README\.md:1: It brings"):
        test_plain_english(next(pattern for pattern in PHRASES if "only) so many" in pattern))
    test_plain_english(r"\bgone on with\b")
