"""`mu prepare covid-chestxray` in this process, and what it leaves."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from tests import warm


def call(raw: Path, out: Path, *args: str) -> Result:
    line = ["prepare", "covid-chestxray", "--raw", str(raw), "--out", str(out), "--size", "32"]
    return CliRunner().invoke(mu, [*line, "--shard-size", "5", "--workers", "1", *args])


def done(raw: Path, out: Path, *args: str) -> dict[str, Any]:
    result = call(raw, out, *args)
    assert result.exit_code == 0, result.output
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def refused(raw: Path, out: Path, *args: str) -> str:
    """The one line a user reads."""
    result = call(raw, out, *args)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    # below the line that says what is begun
    lines = [line for line in result.stderr.strip().splitlines() if ": images of " not in line]
    assert len(lines) == 1, lines
    return lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a user sees."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@contextlib.contextmanager
def started(raw: Path, out: Path, *args: str) -> Iterator[warm.Warm]:
    line = ["-m", "medunifier_cli", "prepare", "covid-chestxray", "--raw", raw]
    process = warm.start([*line, "--out", out, "--size", 32, "--shard-size", 4, *args])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
