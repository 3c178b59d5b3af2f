"""The file map of CONTRIBUTING.md, written from the first words of each file by `make docs`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from medunifier_cli.cli import help_line
from tests.folders import ROOT

PAGE = ROOT / "CONTRIBUTING.md"
FOLDERS = ("medunifier_cli", "plugins", "recipes", "experiments", "benchmarks")
BEGIN = "<!-- file map: written by `make docs` from the first words of each file -->"
END = "<!-- end of the file map -->"
PASSED_OVER = {"__pycache__"}


def source_files() -> list[str]:
    """Every file of these folders that says something, relative to the root, sorted by folder."""
    found = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not PASSED_OVER & set(path.parts) and path.stat().st_size:
                found.append(path.relative_to(ROOT))
    return [str(path) for path in sorted(found, key=_place)]


def _place(path: Path) -> tuple[object, ...]:
    return FOLDERS.index(path.parts[0]), path.parts[:-1], path.name


def first_words(path: Path) -> str:
    """First sentence of a module's docstring, or of the comment a YAML file opens with.

    Raises:
        ValueError: the file does not say what it is.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
        text = text.split("\n\n")[0]
    else:
        comment = re.match(r"(?:#.*\n)+", text)
        text = re.sub(r"^# ?", "", comment[0], flags=re.MULTILINE) if comment else ""
    words = " ".join(text.split())
    sentence = re.match(r".+?\.(?= [A-Z`]|$)", words)
    words = (sentence[0] if sentence else words).rstrip(".:")
    if path.parent.name == "commands":
        words += f": {help_line(path)}".rstrip(".")
    if not words:
        raise ValueError(f"{path.relative_to(ROOT)} opens without a word about what it is")
    return words


def file_map() -> str:
    """The map as Markdown, one line per file under the folder it lies in."""
    lines: list[str] = []
    folder = ""
    for name in source_files():
        if (parent := str(Path(name).parent)) != folder:
            folder = parent
            lines += ["", f"**{folder}/**", ""]
        lines.append(f"- `{name}` - {first_words(ROOT / name)}")
    return "\n".join(lines).strip()


def written() -> str:
    """What the page says now."""
    return PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def main() -> None:
    """Write the page anew between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{file_map()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
