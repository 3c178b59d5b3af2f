"""A short run on phantom that several files measure: where its results are, and how to read its pages."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from tests import warm

RECIPE = Path(__file__).parent / "small_phantom.yaml"

Mu = Callable[..., Result]
"""`mu ...` in this process."""


def call(root: Path, *arguments: object) -> tuple[int, str]:
    """Run `mu` in this process, with data and runs under `root`: exit code, and what it printed.

    `another_process` is for what depends on what this one has done before.
    """
    env = {"MU_DATA": str(root / "data"), "MU_RUNS": str(root / "runs")}
    done = CliRunner().invoke(mu, [str(word) for word in arguments], env=env, catch_exceptions=False)
    return done.exit_code, done.output


def another_process(root: Path, *commands: Sequence[object]) -> None:
    """Run several `mu ...` in one other process, which must all succeed."""
    env = {**os.environ, "MU_DATA": str(root / "data"), "MU_RUNS": str(root / "runs")}
    script = (
        "from medunifier_cli.cli import mu\n"
        f"for words in {[[str(word) for word in words] for words in commands]!r}:\n"
        "    mu(words, standalone_mode=False)\n"
    )
    done = warm.run(["-c", script], env=env, timeout=300)
    assert done.returncode == 0, done.stderr


def results(home: Path) -> Path:
    return home / "runs" / "small" / "results"


def samples(home: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (results(home) / f"{name}.samples.jsonl").read_text().splitlines()]


def metrics(home: Path, name: str) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in json.loads((results(home) / f"{name}.json").read_text())["metrics"]}


def inline(source: str) -> io.BytesIO:
    """The file of a picture that a page holds itself."""
    return io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))


class Gallery(HTMLParser):
    """What a reader of the page sees."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.figures: list[str] = []
        self.inside = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self.inside = True
            self.figures.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "figure"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.figures[-1] += data + "\n"
