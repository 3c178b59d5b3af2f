"""A hook of MkDocs: README and the other pages of the checkout's first folder become pages of the site.

Links in Markdown stay as a repository browser follows them, `../README.md` from a page and `docs/speed.md` from
README; here they become those of the site. A link to a file that is no page, such as LICENSE, becomes its text.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the first folder -> its page on the site, next to those of docs/."""
LINK = re.compile(r"(?<=\])\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the first folder."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of one page into those of the site."""
    home = ROOT if page.file.src_uri in PAGES.values() else ROOT / "docs"

    def on_site(link: re.Match[str]) -> str:
        target = (home / link[1]).resolve()
        if not target.exists():
            return link[0]  # MkDocs says so, with the page
        if target.parent == ROOT and target.name in PAGES:
            return f"({PAGES[target.name]}{link[2] or ''})"
        if target.is_relative_to(ROOT / "docs"):
            return f"({target.relative_to(ROOT / 'docs').as_posix()}{link[2] or ''})"
        return ""

    return LINK.sub(on_site, markdown)
