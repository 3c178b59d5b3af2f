"""The pages that people look at: films of their own, and a run; in a browser where there is one."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.data.batch import PackedText
from medunifier_cli.evaluate.reports.film_page import CASES, similarities
from medunifier_cli.evaluate.reports.looks import query_looks, sentences, token_maps, token_reads
from medunifier_cli.run.record import Run
from tests.browser import CHROMIUM, Browser
from tests.run import small_run

VOID = {"meta", "link", "img", "br", "path", "polyline", "circle"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom and a run of few steps, whose Q-Former has three layers, and films of two sizes."""
    folder = tmp_path_factory.mktemp("films")
    sizes = ("-o", "train=40", "-o", "valid=20", "-o", "test=24")
    changed = (
        "-o",
        "model.qformer.layers=3",
        "-o",
        "train.steps=2",
        "-o",
        "data.valid=",
        "-o",
        "objectives.tig=0",
    )
    for command in (
        ("prepare", "phantom", "--size", 32, *sizes),
        ("pretrain", small_run.RECIPE, "--name", "r", *changed),
    ):
        code, printed = small_run.call(folder, *command)
        assert code == 0, printed
    levels = np.random.default_rng(0).integers(0, 255, (90, 60), dtype=np.uint8)
    Image.fromarray(levels).save(folder / "a <film>.png")
    Image.fromarray(levels[:50]).save(folder / "other.jpg")
    (folder / "other.jpg").chmod(0o600)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def trained(root: Path) -> PretrainedRun:
    return restore(Run(root / "runs" / "r"))


@pytest.fixture(scope="module")
def page(root: Path) -> Path:
    films = (root / "a <film>.png", root / "other.jpg", root / "notes.txt")
    words = ("--sample", "greedy", "--max-tokens", 12, "--page", root / "out")
    code, printed = small_run.call(root, "report", "--run", "r", *films, *words)
    assert code == 0, printed
    assert str(root / "out" / "index.html") in printed
    return root / "out" / "index.html"


class Balanced(HTMLParser):
    """Fails for an element that is not closed, and collects what tests ask for."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_film_has_its_report_classes_sentences_and_similar_cases(page: Path) -> None:
    text, tags = page.read_text(), Balanced(page).tags
    assert "a &lt;film&gt;.png" in text
    assert "Not for diagnosis." in text
    assert "notes.txt" in text.split("could not be read")[1]
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert all(str(attrs["src"]).startswith("data:image/") and attrs["alt"] for attrs in images)
    assert sum("similar case" in str(attrs["alt"]) for attrs in images) == 2 * CASES
    for name in ("Atelectasis", "Cardiomegaly", "Edema", "No Finding", "Pleural Effusion", "Pneumonia"):
        assert f"<span>{name}</span>" in text
    assert len(re.findall("<article", text)) == 2
    assert "<h3>Classes by prompts (zero-shot)</h3>" in text
    assert re.search(r"similarity <span[^>]*>[^<]*</span><br>phantom-\S+<p>", text), "key, then text"
    assert "The stronger the amber, the more the model read there" in text
    assert "trained on phantom" in text


def test_attention_is_that_of_the_model(trained: PretrainedRun) -> None:
    """What replays the passes to see their weights ends with the very features of the passes."""
    model, image = trained.model, torch.randint(0, 255, (1, 1, 32, 32), dtype=torch.uint8)
    start, tokens = trained.tokenizer.dec_id, [7, 9, 11, 20]
    with torch.inference_mode():
        memory = model.encode(image)
        ids = [start, *tokens[:-1]]
        reads, last_TD = token_reads(model, memory, ids)
        expected_TD = model.qformer.decode_text(memory, PackedText.of([ids], trained.device))
        torch.testing.assert_close(last_TD, expected_TD, atol=1e-5, rtol=1e-4)
        looks = query_looks(model, memory)
        maps_TGG = token_maps(model, memory, tokens, start)
        # by hand: of three layers, the second reads the first's looks, the third the mean of two
        first, second = looks[0][:, 1:], torch.stack(looks[:2]).mean(dim=0)[:, 1:]  # type: ignore[index,arg-type]
        by_hand = reads[1] @ first + reads[2] @ second
    by_hand = (by_hand / by_hand.sum(dim=1, keepdim=True)).view(len(tokens), 4, 4)
    np.testing.assert_allclose(maps_TGG, by_hand.numpy(), rtol=1e-5)
    np.testing.assert_allclose(maps_TGG.sum(axis=(1, 2)), 1, rtol=1e-5)
    for look in looks:
        assert look is not None
        np.testing.assert_allclose(look.sum(dim=1).numpy(), 1, rtol=1e-5)


def test_queries_look_where_the_model_lets_them(trained: PretrainedRun) -> None:
    """Against the queries and keys that pass through the model's own layers when it encodes."""
    image = torch.randint(0, 255, (1, 1, 32, 32), dtype=torch.uint8)
    crosses = [block.cross for block in trained.model.qformer.blocks]
    asked: dict[int, torch.Tensor] = {}
    hooks = [
        cross.q.register_forward_hook(lambda _, __, out, n=n: asked.update({n: out}))
        for n, cross in enumerate(crosses)
        if cross is not None
    ]
    with torch.inference_mode():
        memory = trained.model.encode(image)
        for hook in hooks:
            hook.remove()
        looks = query_looks(trained.model, memory)
    assert asked
    assert list(asked) == [n for n, look in enumerate(looks) if look is not None]
    for n, query_1QD in asked.items():
        key_BHVE = memory.cross[n][0]
        heads, width = key_BHVE.shape[1], key_BHVE.shape[3]
        per_head = []
        for head in range(heads):
            q_QE = query_1QD[0, :, head * width : (head + 1) * width]
            per_head.append((q_QE @ key_BHVE[0, head].T / width**0.5).softmax(dim=1))
        torch.testing.assert_close(looks[n], sum(per_head) / heads, atol=1e-5, rtol=1e-4)


def test_the_page_of_a_private_film_is_private(page: Path) -> None:
    assert page.stat().st_mode & 0o077 == 0


def test_sentences_of_a_report(trained: PretrainedRun) -> None:
    text = "Small left effusion. No pneumonia."
    tokens = trained.tokenizer.encode(text, 60)[1:-1]
    found = sentences(trained.tokenizer, tokens)
    assert [said for said, _ in found] == ["Small left effusion.", "No pneumonia."]
    assert [token for _, part in found for token in tokens[part]] == tokens


def test_similarity_is_the_mean_cosine_of_counterparts() -> None:
    features = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=2, keepdims=True)
    found = similarities(features[2], features)
    by_hand = [np.mean([features[2, q] @ one[q] for q in range(3)]) for one in features]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    assert found.argmax() == 2


def test_mistakes_are_usage_errors(root: Path) -> None:
    for words, said in (
        (("--page", root / "x"), "--page shows image files"),
        (
            (root / "other.jpg", "--page", root / "x.PDF"),
            "x.PDF: a page is a folder, or a file whose name ends in",
        ),
        ((*[root / "other.jpg"] * 101, "--page", root / "x"), "at most 100 films"),
    ):
        code, printed = small_run.call(root, "report", "--run", "r", *words)
        assert code != 0
        assert said in printed


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to look at pages with")
def test_pages_fit_every_window_and_ask_no_network(root: Path, page: Path) -> None:
    code, printed = small_run.call(root, "zeroshot", "--run", "r")
    assert code == 0, printed
    assert small_run.call(root, "score", "r", "--page")[0] == 0
    run_page = root / "runs" / "r" / "page" / "index.html"
    Balanced(run_page)
    with Browser() as browser:
        for shown in (page, run_page):
            for width in (390, 1280):
                colours = set()
                for dark in (False, True):
                    browser.open(shown, width, dark=dark)
                    wide, room = browser.evaluate(
                        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
                    )
                    assert wide <= room, (shown, width)
                    assert browser.requests == [shown.resolve().as_uri()]
                    assert browser.errors == []
                    colours.add(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
                assert len(colours) == 2
            browser.press("Tab")
            assert browser.evaluate("document.activeElement.className") == "skip"
            assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
