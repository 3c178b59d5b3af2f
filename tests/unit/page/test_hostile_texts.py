"""Pages of texts that would be markup, of names that are no text, and of data that only some may read."""

from __future__ import annotations

import json
import os
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medunifier_cli.page.differences import differences
from medunifier_cli.page.film_page import (
    Case,
    ClassBar,
    Colophon,
    Film,
    Sentence,
    overlaid,
    write_film_page,
)
from medunifier_cli.page.pictures import CAPTIONS, read_columns, save_rows, shown
from medunifier_cli.page.run_page import (
    Confusion,
    ConfusionRow,
    Contents,
    Examples,
    Hit,
    Number,
    NumberGroup,
    ReportExample,
    RetrievalExample,
    span,
    write_run_page,
)
from medunifier_cli.run.record import Run

WILD = """No <script>alert("1")</script> & 'edema' "><img src=x onerror=alert(2)> {{ 7 * 7 }}"""
GREY = np.zeros((8, 8), np.uint8)


class Parsed(HTMLParser):
    """Tags, attributes and text of a page as a browser has them."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def check(page: Path, times: int) -> None:
    parsed = Parsed(page)
    assert parsed.tags.isdisjoint({"script", "iframe", "object", "form", "base"})
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    for name, value in parsed.attributes:
        if name in ("src", "href"):
            assert value.startswith(("#", "data:")), value
    assert parsed.text.count(WILD) >= times


def film(name: str) -> Film:
    share_GG = np.full((2, 2), 0.25, np.float32)
    sentence = Sentence(WILD, overlaid(GREY, share_GG, WILD), 1.0)
    case = Case(WILD, 0.5, shown(GREY, WILD), WILD)
    return Film(
        name, shown(GREY, WILD), WILD, {WILD: WILD}, [sentence], [ClassBar(WILD, 0.5)], [case], {}, [WILD]
    )


def test_no_text_of_a_film_becomes_markup(tmp_path: Path) -> None:
    colophon = Colophon({WILD: WILD}, WILD, WILD, {WILD: WILD})
    page = write_film_page(tmp_path / "one.html", [film(WILD)], colophon)
    check(page, 13)
    check(write_film_page(tmp_path, [film(WILD), film("b")], colophon), 20)


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    save_rows([[GREY / 255]], run.samples / "synthetic.png", [WILD])
    run.provenance.write_text(json.dumps({"starts": [{"command": ["mu", WILD], "git_commit": WILD}]}))
    number = Number(WILD, "0.5", span(0.5), "0.2", "0.4-0.6", WILD)
    report = ReportExample(WILD, *differences("alert", WILD), shown(GREY, WILD))
    row = ConfusionRow(WILD, [(1, 1.0)])
    contents = Contents(
        headlines=[number], groups=[NumberGroup(WILD, WILD, [number])],
        reports=Examples(WILD, [report]),
        retrieval=Examples(WILD, [RetrievalExample(WILD, [Hit(WILD, 0.5, WILD)], None)]),
        confusions=[Confusion(WILD, [WILD], [row], 1, 1.0)],
    )  # fmt: skip
    page = write_run_page(run, contents, {})
    check(page, 15)
    assert ("title", WILD) in Parsed(page).attributes  # the name of a column of the confusion


def test_a_file_whose_name_is_no_text_has_a_page(tmp_path: Path) -> None:
    name = os.fsdecode(b"film-\xff.png")
    page = write_film_page(tmp_path, [film(name)], Colophon({}, "", "", {name: "no image"}))
    assert "film-?.png" in page.read_text(encoding="utf-8")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_page_is_as_private_as_all_that_it_shows(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    save_rows([[GREY / 255]], run.samples / "synthetic.png", [WILD])
    texts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in (*texts, run.samples / "synthetic.png"):
        path.touch()
        path.chmod(0o644)
    tmp_path.chmod(0o755)
    usual = mode(write_run_page(run, Contents(texts_of=texts), {}))
    assert usual & 0o044
    for private in (*texts, run.samples / "synthetic.png"):
        private.chmod(0o600)
        assert mode(write_run_page(run, Contents(texts_of=texts), {})) == usual & ~0o077, private
        assert mode(write_film_page(tmp_path, [film("a")], Colophon({}, "", "", {}), [private])) & 0o077 == 0
        private.chmod(0o644)
    assert mode(write_run_page(run, Contents(texts_of=texts), {})) == usual


@pytest.mark.parametrize("captions", ["5", "{}", "[", "null"])
def test_a_picture_with_damaged_captions_is_none(tmp_path: Path, captions: str) -> None:
    notes = PngInfo()
    notes.add_text(CAPTIONS, captions)
    Image.fromarray(GREY).save(tmp_path / "a.png", pnginfo=notes)
    assert read_columns(tmp_path / "a.png", 1) == []
