"""The documentation as a site: it builds without a warning, reads without a network, and says what is so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from medunifier_cli.evaluate.tables.paper_values import IDS, TABLES
from medunifier_cli.recipe.load import load_recipe
from tests.folders import ROOT

DOCS = ROOT / "docs"
SOURCES = ("medunifier", "medunifier_cli", "plugins")
MESSAGE = re.compile(r"^\*\*(`+)(.+)\1\*\*$", re.MULTILINE)
VARIABLE = "…"
"""What stands for a name, path or number in a message that the page on troubleshooting quotes."""


def build(folder: Path, **changes: object) -> Path:
    """Build with warnings as errors, as `make site` does; the folder of the site."""
    pytest.importorskip("material", reason="pip install 'medunifier[docs]'")
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True, **changes)
    config.plugins.on_startup(command="build", dirty=False)
    build_site(config)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


def test_every_page_is_on_the_site(site: Path) -> None:
    pages = {path.stem for path in DOCS.glob("*.md")} | {"index", "contributing", "benchmarks", "changelog"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert not list(site.rglob("*.py"))


def test_a_reader_needs_no_network(site: Path) -> None:
    """Links that a reader follows may lead elsewhere; what a browser loads by itself may not."""
    loaded = re.compile(r"<(?:(?:script|img|iframe|source)\b[^>]*\bsrc|link\b[^>]*\bhref)=\"?([^\" >]+)")
    for page in site.glob("*.html"):
        for name in loaded.findall(page.read_text(encoding="utf-8")):
            assert not re.match(r"(?:\w+:)?//", name), f"{page.name}: {name}"
            # the page of errors alone has links from the root
            there = name.startswith("data:") or (site / name.split("?")[0].lstrip("/")).exists()
            assert there, f"{page.name}: {name}"
    css = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//", css)


def test_links_between_the_first_folder_and_docs_lead_to_pages(site: Path) -> None:
    assert 'href="index.html"' in _body(site / "reliability.html")  # ../README.md
    home = _body(site / "index.html")
    assert 'href="own-data.html"' in home  # docs/own-data.md
    assert 'src="demo.png"' in home
    assert "LICENSE" in home
    assert not re.search(r'href="[^"]*LICENSE|\]\(', home)  # no page of the site


def test_a_table_shows_bars_without_backslash(site: Path) -> None:
    text = _body(site / "command-line.html")
    assert "text|json|csv|markdown" in text
    assert "\\|" not in text


def test_search_finds_words_of_a_page_from_disk(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = ")
    assert "perplexity at one position" in index.lower()


@pytest.mark.parametrize("link", ["(no-such-page.md)", "(glossary.md#no-such-heading)", "(../NO_FILE.md)"])
def test_a_link_to_nowhere_is_an_error(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "glossary.md").write_text(f"# Glossary\n\n[there]{link}\n", encoding="utf-8")
    (tmp_path / "docs" / "site").symlink_to(DOCS / "site")
    exceptions = pytest.importorskip("mkdocs.exceptions", reason="pip install 'medunifier[docs]'")
    with pytest.raises(exceptions.Abort):
        build(tmp_path / "site", docs_dir=str(tmp_path / "docs"), nav=None, hooks=[], plugins=[])


def _body(page: Path) -> str:
    return page.read_text(encoding="utf-8").split("<article")[1].split("</article>")[0]


# --- troubleshooting


def templates(text: str) -> Iterator[str]:
    """The texts of a module without its docstrings, with … where a value is filled in."""
    tree, strings, inner = ast.parse(text), [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            strings.append(node)
            inner |= {id(part) for part in node.values}
        elif isinstance(node, ast.Constant):
            strings.append(node)
        elif isinstance(node, ast.FormattedValue):
            inner.add(id(node.format_spec))
        elif isinstance(node, ast.Expr):
            inner.add(id(node.value))
    for node in strings:
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else VARIABLE for part in node.values)
        elif isinstance(node.value, str):
            yield node.value


def test_templates_are_what_a_user_sees_less_the_values() -> None:
    module = '"""No text of {x}."""\nraise E(f"{path}: {n:,} of " f"them{end(1)}") from e\n'
    assert list(templates(module)) == ["…: … of them…"]


def test_messages_of_the_page_on_troubleshooting_are_those_of_the_code() -> None:
    known = {
        template
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*.py")
        for template in templates(path.read_text(encoding="utf-8"))
    }
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [found[2].strip() for found in MESSAGE.finditer(page)]
    assert len(messages) > 40
    assert len(messages) == len(set(messages))
    gone = [message for message in messages if not any(message in template for template in known)]
    assert gone == [], "no message of mu says this any more"


# --- the paper's experiments


def test_the_page_on_the_paper_has_every_table_and_the_recipes_of_their_rows() -> None:
    page = (DOCS / "paper.md").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"^## (.*)$", page, re.MULTILINE)).lower()
    assert [table.number for table in TABLES if f"table {table.number.lower()}" not in headings] == []
    rows = re.findall(r"^\| [^|]+ \| `([\w.-]+)` \| ((?:ITC|all four)[^|]*) \|$", page, re.MULTILINE)
    fits = []
    for name, said in rows:
        weights = load_recipe(name).objectives.weights()
        names = ["ITC", "ITM", "ITG", "TIG"] if said.startswith("all four") else said.split(", ")
        assert [one.upper() for one in weights] == names, name
        others = [str(weight) for weight in weights.values() if weight != 1]
        assert others == re.findall(r"0\.8|1\.2", said), name
        fits += [row for row, paper in IDS if paper.fits(weights)]
    assert sorted(fits) == [row for row, _ in IDS], "each row of the ablation has its recipe"
