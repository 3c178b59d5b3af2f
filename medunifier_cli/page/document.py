"""Write HTML pages from the templates of this folder: one file each, without scripts, that asks no network.

Every page works from a disk, in light and dark mode, from 390 pixels of width on, and by keyboard. Values are
escaped by jinja2; what a template is given as `Markup` is not, and only `plot` makes any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medunifier_cli.files import make_folder, write_text

TEMPLATES = Path(__file__).parent / "templates"
HTML = ".html"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, auto_reload=False,
    )  # fmt: skip
    environment.filters["anchor"] = anchor
    return environment


def anchor(title: str) -> str:
    """A heading as the id that links go to: `All numbers` -> `all-numbers`."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


def render(template: str, values: Mapping[str, Any]) -> str:
    """A whole document.

    Args:
        template: name of a file in `templates/`.
        values: what it shows; `title` is the heading and the name of the page.
    """
    return _environment().get_template(template).render(values)


def save_page(
    out: Path, template: str, values: Mapping[str, Any], texts_of: Path | Sequence[Path] | None = None
) -> Path:
    """Write a page; an older one is replaced. Bytes of a file's name that are no text are shown as `?`.

    Args:
        out: the file, if its name ends in `.html`, or the folder of its `index.html`.
        template, values: see `render`.
        texts_of: data whose texts or films it shows, see `files.atomic_write`.

    Returns:
        The file.

    Raises:
        DataError: the disk is full or cannot be written to.
    """
    path = page_at(out)
    make_folder(path.parent)
    text = render(template, values).encode(errors="replace").decode()
    write_text(path, text, texts_of=texts_of)
    return path


def page_at(out: Path) -> Path:
    """The file that `save_page` writes for a file or a folder."""
    return out if out.suffix == HTML else out / f"index{HTML}"
