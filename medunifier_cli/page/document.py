"""Write static HTML pages that work offline from a folder, in light and dark mode, without scripts."""

from __future__ import annotations

from html import escape
from pathlib import Path

from medunifier_cli.files import make_folder, write_text

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1b2026; --soft: #59626d; --line: #d6dade;
  --panel: #f1f3f4; --mark: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e6e9ec; --soft: #a3acb5;
  --line: #343a41; --panel: #1d2125; --mark: #7db8f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, dl { max-width: 60rem; } a { color: var(--mark); }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 0 1.5rem; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
ol.gallery { list-style: none; padding: 0; margin: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
figure { margin: 0; } .card { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem; }
.card img, .query img { width: 100%; height: auto; display: block; background: #000; border-radius: .2rem; }
.query { max-width: 16rem; margin-bottom: 1.5rem; }
figcaption { margin-top: .5rem; font-size: .875rem; overflow-wrap: anywhere; }
figcaption .key { color: var(--soft); } figcaption p { margin: .4rem 0 0; }
.number { font-variant-numeric: tabular-nums; font-weight: 600; }
table { border-collapse: collapse; font-size: .9rem; } .wide { overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); }
figure.plot svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
svg .train { stroke: var(--mark); fill: none; stroke-width: 1.5; }
svg .valid { stroke: var(--ink); fill: none; stroke-width: 1.5; stroke-dasharray: 4 3; }
img.wide { max-width: 100%; height: auto; }
"""


def page(title: str, body: str) -> str:
    """A whole document; `title` is plain text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="robots" content="noindex">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def facts(pairs: dict[str, str]) -> str:
    """A list of names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f'<dl class="facts">{rows}</dl>'


def grid(rows: list[list[str]], words: int = 1, caption: str = "") -> str:
    """A table; the first row is the head, the first `words` columns hold words, the others numbers."""
    kind = ["" if i < words else ' class="n"' for i in range(len(rows[0]))]
    head = "".join(f'<th scope="col"{k}>{escape(c)}</th>' for c, k in zip(rows[0], kind, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{k}>{escape(c)}</td>" for c, k in zip(row, kind, strict=True)) + "</tr>"
        for row in rows[1:]
    ]
    header = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{header}<thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def save_page(folder: Path, title: str, body: str, texts_of: Path | None = None) -> Path:
    """Write `index.html` into a folder; `texts_of`: data whose texts it shows, see `files.atomic_write`."""
    make_folder(folder)
    path = folder / "index.html"
    write_text(path, page(title, body), texts_of=texts_of)
    return path
