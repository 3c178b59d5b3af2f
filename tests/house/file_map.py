"""Writes docs/map.md: one line for each source file, taken from the first words of the file itself.

`make docs` runs it as a script, hence no import from `tests`.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from medunifier_cli.cli import help_line
from medunifier_cli.recipe.documented.json_schema import COMMENT

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "map.md"
FOLDERS = ("medunifier", "medunifier_cli", "plugins", "recipes", "experiments", "benchmarks")
HEADING = """# File map

Written by `make docs` from the first words of each file: edit those, not this page. How the folders fit
together: [architecture.md](architecture.md)."""
IGNORED = {"__pycache__"}


def source_files() -> list[str]:
    """Every file of these folders that is not empty, relative to the root, sorted by folder."""
    paths = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not IGNORED & set(path.parts) and path.stat().st_size:
                paths.append(path.relative_to(ROOT))
    return [str(path) for path in sorted(paths, key=_sort_key)]


def _sort_key(path: Path) -> tuple[object, ...]:
    return FOLDERS.index(path.parts[0]), path.parts[:-1], path.name


def first_words(path: Path) -> str:
    """First sentence of a module's docstring, or of the comment that a YAML file or a template opens
    with; title of a schema.

    Raises:
        ValueError: the file has no opening docstring or comment.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        text = text.split("\n\n")[0]
    elif path.suffix in (".html", ".css"):
        comment = re.match(r"(?:\{#|/\*)(.*?)(?:#\}|\*/)", text, re.DOTALL)
        text = comment[1] if comment else ""
    elif path.suffix == ".json":  # which has no comments
        text = json.loads(text)["title"]
    else:
        text = COMMENT.sub("", text)
        comment = re.match(r"(?:#.*\n)+", text)
        text = re.sub(r"^# ?", "", comment[0], flags=re.MULTILINE) if comment else ""
    words = " ".join(text.split())
    sentence = re.match(r".+?\.(?= [A-Z`]|$)", words)
    words = (sentence[0] if sentence else words).rstrip(".:")
    if path.parent.name == "commands":
        words += f": {help_line(path)}".rstrip(".")
    if not words:
        raise ValueError(f"{path.relative_to(ROOT)}: begin it with a sentence that says what it is")
    return words


def file_map() -> str:
    """The page as Markdown: one line per file under the folder that holds it."""
    lines = [HEADING]
    folder = ""
    for name in source_files():
        if (parent := str(Path(name).parent)) != folder:
            folder = parent
            lines += ["", f"**{folder}/**", ""]
        lines.append(f"- `{name}` - {first_words(ROOT / name)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(file_map(), encoding="utf-8")


if __name__ == "__main__":
    main()
