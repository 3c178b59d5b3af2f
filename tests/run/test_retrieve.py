"""`mu retrieve` on a small run: numbers against slow references, searches and their galleries."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import PackedText
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.retrieval import fit
from medunifier_cli.evaluate.retrieval.embed import embed_split
from medunifier_cli.evaluate.retrieval.rerank import match_scores
from medunifier_cli.evaluate.retrieval.search import similar_images
from medunifier_cli.evaluate.tables.saved_outputs import score_outputs
from medunifier_cli.model.vit import pixels
from medunifier_cli.run.cache import open_hdf5, write_cache
from tests.run.small_run import Gallery, Mu, inline, metrics, results, samples


def test_numbers_follow_from_the_saved_rankings(home: Path, verb: Mu) -> None:
    assert verb("retrieve", "--split", "test").exit_code == 0
    rows, found = samples(home, "retrieval-phantom-test"), metrics(home, "retrieval-phantom-test")
    assert len(rows) == 20  # half of the phantom's cases have exactly one finding
    class_of = {row["key"]: row["class"] for row in rows}
    for way, words in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        values = []
        for row in rows:
            hits = [class_of[key] == row["class"] for key in row[way][:5]]
            precise = [sum(hits[: j + 1]) / (j + 1) for j in range(5) if hits[j]]
            values.append(sum(precise) / len(precise) if precise else 0.0)
        metric = found[f"{words}, map@5"]
        assert metric["value"] == pytest.approx(np.mean(values), abs=1e-12)
        assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
        assert metric["low"] < metric["high"]
    result = json.loads((results(home) / "retrieval-phantom-test.json").read_text())
    assert set(class_of.values()) <= set(result["classes"])
    again, _ = score_outputs(results(home) / "retrieval-phantom-test.samples.jsonl")
    assert len(again) == len(found)
    for metric in again:
        assert metric.value == pytest.approx(found[metric.name]["value"]), metric.name


def odds(trained: PretrainedRun, benchmark: Benchmark, image: int, text: int) -> float:
    """Log-odds of a match of one pair, read alone."""
    ids = torch.tensor(list(benchmark.source.sample(text).token_ids))
    with torch.no_grad():
        seen = pixels(torch.from_numpy(benchmark.source.sample(image).image_HW)[None, None])
        memory = trained.model.encode_image(seen)
        packed = PackedText(ids, torch.tensor([len(ids)]))
        logits = trained.model.match(memory, torch.tensor([0]), packed)
    return float(logits[0, 1] - logits[0, 0])


def test_matching_takes_pairs_in_any_order(trained: PretrainedRun, benchmark: Benchmark) -> None:
    random = np.random.default_rng(0)
    image = np.concatenate([np.full(20, 5), random.integers(0, 40, 40)])  # more texts of one than of others
    text = np.concatenate([random.permutation(40)[:20], random.integers(0, 40, 40)])
    shuffled = random.permutation(60)
    image, text = image[shuffled], text[shuffled]
    found = match_scores(trained, benchmark.source.images, benchmark.source.token_ids, image, text)
    wanted = [odds(trained, benchmark, *pair) for pair in zip(image.tolist(), text.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(wanted, abs=2e-5)


def test_reranked_order_is_that_of_pairs_read_one_at_a_time(
    home: Path, verb: Mu, trained: PretrainedRun, benchmark: Benchmark
) -> None:
    done = verb("retrieve", "--split", "test", "--rerank", 7)
    assert done.exit_code == 0
    assert "best 7 re-ranked by ITM" in done.stdout
    plain = samples(home, "retrieval-phantom-test")
    again = samples(home, "retrieval-rerank7-phantom-test")
    number = {benchmark.source.sample(i).key: i for i in range(len(benchmark.source))}
    for before, after in list(zip(plain, again, strict=True))[:6]:
        for way in ("image_to_text", "text_to_image"):
            pairs = [(before["key"], other) for other in before[way]]
            if way == "text_to_image":
                pairs = [(image, text) for text, image in pairs]
            wanted = [odds(trained, benchmark, number[image], number[text]) for image, text in pairs[:7]]
            assert sorted(after[way][:7]) == sorted(before[way][:7])
            assert after[way][7:] == before[way][7:]
            assert after[f"{way}_scores"][:7] == pytest.approx(sorted(wanted, reverse=True), abs=2e-5)
            for key, score in zip(after[way][:7], after[f"{way}_scores"], strict=False):
                assert score == pytest.approx(wanted[before[way].index(key)], abs=2e-5)


@pytest.mark.parametrize(
    "words",
    [
        ("retrieve", "--rerank", "3"),
        ("zeroshot", "--prompts", "all"),
        ("zeroshot", "--ensemble", "mean"),
        ("retrieve", "--query", "small right effusion", "--top", "4", "--rerank", "3"),
    ],
)
def test_the_same_command_leaves_the_same_files(home: Path, verb: Mu, words: tuple[str, ...]) -> None:
    def left() -> dict[str, str]:
        run = home / "runs" / "small"
        found = [path for part in ("results", "page") for path in (run / part).rglob("*") if path.is_file()]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}

    assert verb(*words, "--split", "test").exit_code == 0
    first = left()
    shutil.rmtree(home / "runs" / "small" / "cache")
    assert verb(*words, "--split", "test").exit_code == 0
    assert left() == first


def test_a_cache_is_read_and_refused_when_data_or_checkpoint_changed(home: Path, verb: Mu) -> None:
    cache = home / "runs" / "small" / "cache" / "embeddings-phantom-test.h5"
    result = results(home) / "retrieval-phantom-test.json"

    def scores() -> Any:
        assert verb("retrieve", "--split", "test").exit_code == 0
        return json.loads(result.read_text())["metrics"]

    def spoil(made_of: str = "") -> None:
        """Other contents than the checkpoint gives, with a hash that fits them."""
        with open_hdf5(cache) as file:
            arrays, own = {name: data[()] for name, data in file.items()}, file.attrs["made_of"]
        write_cache(cache, made_of or own, {**arrays, "text": np.roll(arrays["text"], 7, axis=0)})

    good = scores()
    spoil()
    assert scores() != good, "a cache of the same checkpoint and data is read"
    with h5py.File(cache, "r+") as file:
        file["text"][0] += 1
    assert scores() == good, "one that was changed since it was written is not"
    spoil()
    manifest = home / "data" / "shards" / "phantom" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # other data, as far as a hash can tell
    assert scores() == good
    spoil(made_of="another checkpoint")
    assert scores() == good
    cache.write_bytes(cache.read_bytes()[:1000])  # torn
    assert scores() == good


def test_a_hit_whose_image_is_damaged_since_it_was_embedded_is_one_line(home: Path, verb: Mu) -> None:
    words = ("retrieve", "--split", "test", "--query", "effusion", "--top", "1")
    assert verb(*words).exit_code == 0
    shards = Shards.open(home / "data" / "shards" / "phantom", "test")
    whole = {shards.folder / name: (shards.folder / name).read_bytes() for name in shards.names}
    for row in shards.index:
        with (shards.folder / shards.names[int(row["shard"])]).open("r+b") as file:
            file.seek(int(row["image_offset"]) + 20)
            file.write(bytes(40))
    done = verb(*words)
    for path, content in whole.items():
        path.write_bytes(content)
    assert done.exit_code == 1
    assert "damaged image, or one of too many pixels; run `mu prepare` again" in done.output
    assert "unexpected" not in done.output


def test_an_empty_query_is_no_benchmark(home: Path, verb: Mu) -> None:
    done = verb("retrieve", "--split", "test", "--query", "")
    assert done.exit_code == 1
    assert "an empty text" in done.output


def test_a_text_search_leaves_a_gallery_that_works_from_its_folder(
    home: Path, verb: Mu, trained: PretrainedRun, benchmark: Benchmark, tmp_path: Path
) -> None:
    query = "large left effusion <b>& more"
    done = verb("retrieve", "--split", "test", "--query", query, "--top", "5", "--out", tmp_path / "page")
    assert done.exit_code == 0
    page = Path(done.stdout.strip())
    assert page == tmp_path / "page" / "index.html"
    moved = shutil.copytree(page.parent, tmp_path / "elsewhere") / "index.html"
    gallery = Gallery(moved)
    assert len(gallery.figures) == 5
    images = [attrs for tag, attrs in gallery.tags if tag == "img"]
    for attrs in images:
        assert attrs["alt"]
        with Image.open(inline(str(attrs["src"]))) as image:
            image.load()
    text = moved.read_text()
    assert "://" not in text
    assert "<script" not in text
    assert "<b>& more" not in text, "a query is text, never markup"
    assert ("html", {"lang": "en"}) in gallery.tags
    assert "prefers-color-scheme: dark" in text

    with torch.no_grad():
        ids = torch.tensor(trained.tokenizer.encode(query, 95))
        packed = PackedText(ids, torch.tensor([len(ids)]))
        g_t = trained.model.text_head(trained.model.encode_text(packed))[0].numpy()
    found = embed_split(trained, benchmark.source, "phantom", "test", benchmark.shards)
    cosine = {
        key: max(float(q @ g_t) for q in g_q) for key, g_q in zip(found.keys, found.image_nQE, strict=True)
    }
    best = sorted(cosine, key=lambda key: -cosine[key])[:5]
    for key, words in zip(best, gallery.figures, strict=True):
        assert key in words
        assert f"{cosine[key]:.3f}" in words
        report = benchmark.source.text(found.keys.index(key))
        assert report in words
        assert report[:30] not in done.stderr + done.stdout, "reports are patient data"


def test_an_image_search_finds_reports_by_similarity_and_then_by_match(
    home: Path, verb: Mu, trained: PretrainedRun, benchmark: Benchmark, tmp_path: Path
) -> None:
    shards = Shards.open(benchmark.shards, "test")
    (tmp_path / "film.png").write_bytes(shards.image(3))
    words = ("retrieve", "--split", "test", "--image", tmp_path / "film.png", "--top", "6")
    done = verb(*words, "--out", tmp_path / "page")
    assert done.exit_code == 0
    found = embed_split(trained, benchmark.source, "phantom", "test", benchmark.shards)
    cosine = (found.image_nQE[3] @ found.text_nE.T).max(axis=0)
    first: dict[int, str] = {}  # of each text; reports that are equal word for word are one hit
    for i in np.argsort(-cosine, kind="stable"):
        first.setdefault(int(benchmark.source.digests[i]), found.keys[i])
    wanted = list(first.values())[:6]
    figures = Gallery(tmp_path / "page" / "index.html").figures
    assert len(figures) == 7  # the film itself is shown first
    assert "film.png" in figures[0]
    assert [next(key for key in found.keys if key in said) for said in figures[1:]] == wanted
    done = verb(*words, "--out", tmp_path / "again", "--rerank", "6")
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("similarity"))
    assert lines[head] == "similarity  match  film"
    shown = [line.split()[:3] for line in lines[head + 1 : head + 7]]
    assert sorted(key for _, _, key in shown) == sorted(wanted)
    match = [float(value) for _, value, _ in shown]
    assert match == sorted(match, reverse=True)


@pytest.mark.parametrize("similar", [(), ("--similar",)])
def test_what_is_said_of_a_film_ends_as_with_other_verbs(
    home: Path, verb: Mu, benchmark: Benchmark, tmp_path: Path, similar: tuple[str, ...]
) -> None:
    (tmp_path / "film.png").write_bytes(Shards.open(benchmark.shards, "test").image(3))
    Image.effect_noise((90, 60), 80).save(tmp_path / "noise.png")
    words = ("retrieve", "--split", "test", *similar, "--top", "2", "--out", tmp_path / "page", "--image")
    title = "Films like" if similar else "Reports that fit"
    for film, unlike in (("film.png", False), ("noise.png", True)):
        done = verb(*words, tmp_path / film)
        page = Path(done.stdout.strip()).read_text()
        assert f"<h1>{title} {film}</h1>" in page
        assert f"{film}, as the model saw it (32 x 32 pixels)" in page
        for said in (done.stderr, page.split("<footer>")[0]):
            assert "Not for diagnosis." in said
            assert ("unlike those that the model was trained on" in said) == unlike
        assert "your film, are on this page; --out chooses" in done.stderr
    assert "unlike" not in verb(*words, tmp_path / "noise.png", "--no-likeness").stderr


def test_similar_images_come_in_the_order_of_their_cosine(
    home: Path, verb: Mu, trained: PretrainedRun, benchmark: Benchmark, tmp_path: Path
) -> None:
    shards = Shards.open(benchmark.shards, "test")
    (tmp_path / "film.png").write_bytes(shards.image(3))
    words = ("retrieve", "--split", "test", "--image", tmp_path / "film.png", "--similar", "--top", "5")
    done = verb(*words, "--out", tmp_path / "page", "--format", "json")
    rows = json.loads(done.stdout)
    found = embed_split(trained, benchmark.source, "phantom", "test", benchmark.shards)
    own = found.keys.index(shards.key(3))
    cosine = (found.image_nQE * found.image_nQE[own]).sum(axis=2).mean(axis=1)
    # after two steps all images lie close together: their order is that of rounding
    by_key = dict(zip(found.keys, cosine.tolist(), strict=True))
    assert [row["similarity"] for row in rows] == pytest.approx(sorted(by_key.values())[:-6:-1], abs=1e-5)
    assert [row["similarity"] for row in rows] == pytest.approx(
        [by_key[row["key"]] for row in rows], abs=1e-5
    )
    random = np.random.default_rng(0)
    image_QE, image_nQE = random.normal(size=(3, 4)), random.normal(size=(70, 3, 4))
    slow_n = [np.mean([image_QE[i] @ other_QE[i] for i in range(3)]) for other_QE in image_nQE]
    assert similar_images(image_QE, image_nQE) == pytest.approx(np.array(slow_n), abs=1e-6)
    assert verb("retrieve", "--similar").exit_code == 2


def test_none_fits_where_no_pair_reaches_the_threshold_of_held_out_pairs() -> None:
    random = np.random.default_rng(0)
    matched, unmatched = random.normal(2, 1, 50), random.normal(-2, 1, 60)
    found = fit.best_threshold(matched.astype(np.float32), unmatched.astype(np.float32))
    gains = [(matched >= t).mean() - (unmatched >= t).mean() for t in np.linspace(-6, 6, 2000)]
    assert found.matched - found.unmatched >= max(gains) - 1e-6
    assert fit.verdict([found.logodds - 1, found.logodds - 0.1], found).startswith("none fits")
    assert fit.verdict([found.logodds - 1, found.logodds], found) == ""
    assert fit.verdict([-9.0], None) == ""


def test_texts_that_are_nearly_all_the_same_give_no_threshold(
    trained: PretrainedRun, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_text_n = np.ones(len(benchmark.source), bool)
    same = benchmark.source.digests.copy()
    same[1:] = same[0]
    monkeypatch.setattr(benchmark.source, "digests", same)
    monkeypatch.setattr(fit, "match_scores", None)  # nothing is judged
    assert fit.threshold_of(trained, benchmark, has_text_n) is None


def test_words_that_the_tokenizer_spells_are_named(trained: PretrainedRun) -> None:
    assert fit.unknown_words(trained, "xyzzy qwrt") == ["xyzzy", "qwrt"]
    assert "effusion" not in fit.unknown_words(trained, "small right pleural effusion")


def test_a_diverged_checkpoint_or_one_without_the_objective(
    trained: PretrainedRun, benchmark: Benchmark
) -> None:
    def without(name: str) -> PretrainedRun:
        changed = dataclasses.replace(trained.recipe.objectives, **{name: 0.0})
        return dataclasses.replace(trained, recipe=dataclasses.replace(trained.recipe, objectives=changed))

    one = np.zeros(1, np.int64)
    with pytest.raises(CheckpointError, match="without ITM"):
        match_scores(without("itm"), benchmark.source.images, benchmark.source.token_ids, one, one)
    with pytest.raises(CheckpointError, match="without ITC"):
        embed_split(without("itc"), benchmark.source, "phantom", "test", benchmark.shards)
    with torch.no_grad():
        trained.model.text_head.project.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite; training diverged"):
        embed_split(trained, benchmark.source, "phantom", "nan", benchmark.shards)
    assert not (trained.run.folder / "cache" / "embeddings-phantom-nan.h5").exists()


def test_pairs_need_no_classes(home: Path, verb: Mu) -> None:
    """Ranks of the own partner from the cached features by a full sort; a split without classes has these."""
    assert verb("retrieve", "--split", "test").exit_code == 0
    rows, found = samples(home, "retrieval-pairs-phantom-test"), metrics(home, "retrieval-pairs-phantom-test")
    cache = next((home / "runs").glob("*/cache/embeddings-phantom-test.h5"))
    with h5py.File(cache) as file:
        image, text = file["image"][()], file["text"][()]
    scores = np.einsum("iqe,te->iqt", image, text).max(axis=1)
    assert len(rows) == len(scores) == 40
    for way, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        for i, row in enumerate(rows):
            # at most that of its own index, as an equal text of another image may come first; up to rounding,
            # as the product is computed in another order here
            assert row[f"{way}_rank"] <= (matrix[i] > matrix[i, i] - 1e-6).sum()
    recall = np.mean([row["image_to_text_rank"] <= 10 for row in rows])
    assert found["image to text, recall@10"]["value"] == pytest.approx(recall)
    assert found["image to text, median rank"]["floor"] > 1


def test_a_split_without_classes_is_measured_by_pairs_alone(home: Path, verb: Mu, tmp_path: Path) -> None:
    listed = tmp_path / "normal.txt"
    split = Shards.open(home / "data" / "shards" / "phantom", "test")
    several = [split.key(i) for i in range(len(split)) if (split.index["labels"][i] == 1).sum() != 1]
    listed.write_text("\n".join(several), encoding="utf-8")
    shown = verb("retrieve", "--ids", listed)
    assert shown.exit_code == 0, shown.output
    assert "recall@5" in shown.output
    assert "map@1" not in shown.output
    refused = verb("retrieve", "--ids", listed, "--rerank", "2")
    assert (refused.exit_code, "--rerank needs two or more" in refused.stderr) == (1, True)
