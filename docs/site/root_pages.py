"""A hook of MkDocs: README and the other pages of the checkout's first folder become pages of the site.

Links in Markdown stay as a repository browser follows them, `../README.md` from a page and `docs/speed.md`
from README; here they become those of the site. A link to a file that is no page, such as LICENSE, becomes
its text.
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
CELL = re.compile(r"<td.*?</td>", re.DOTALL)
FIRST_IN_SEARCH = ("quick-start.md", "glossary.md", "troubleshooting.md")
LINK = re.compile(r"\[([^\[\]]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the first folder."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of one page into those of the site, and say which pages explain what others use."""
    if page.file.src_uri in FIRST_IN_SEARCH:
        page.meta["search"] = {"boost": 4}
    home = ROOT if page.file.src_uri in PAGES.values() else ROOT / "docs"

    def on_site(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        target = (home / path).resolve()
        if not target.exists():
            return link[0]  # of which MkDocs warns, with the name of the page
        if target.is_relative_to(ROOT / "docs"):
            return f"[{text}]({target.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        page_of = PAGES.get(target.name) if target.parent == ROOT else None
        return f"[{text}]({page_of}{anchor})" if page_of else text

    return LINK.sub(on_site, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Show `a\|b` in a table as `a|b`, as a repository browser does; Python-Markdown leaves a backslash."""
    return CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
