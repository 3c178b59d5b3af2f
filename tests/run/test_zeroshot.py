"""`mu zeroshot` on a small run: numbers, prompts, files, classes without images; and the page of a run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.run.record import Run
from tests.miniatures.prepared import prepare
from tests.run.small_run import Gallery, Mu, inline, metrics, results, samples
from tests.unit.plugins.test_rsna import write_raw


def test_files_get_the_probabilities_of_the_split_and_bad_ones_are_counted(
    home: Path, verb: Mu, benchmark: Benchmark, tmp_path: Path
) -> None:
    assert verb("zeroshot", "--split", "test").exit_code == 0
    rows = samples(home, "zeroshot-phantom-test")[:5]
    keys = [benchmark.source.sample(i).key for i in range(len(benchmark.source))]
    paths = []
    for row in rows:
        paths.append(tmp_path / f"{row['key']}.png")
        paths[-1].write_bytes(benchmark.source.shards.image(keys.index(row["key"])))
    (tmp_path / "torn.png").write_bytes(paths[0].read_bytes()[:200])
    done = verb("zeroshot", *paths[:2], tmp_path / "torn.png", *paths[2:], tmp_path / "gone.dcm", "--json")
    assert done.exit_code == 0
    assert "torn.png: left out (truncated" in done.stderr
    assert "gone.dcm: left out (missing" in done.stderr
    assert "2 of 7 files left out" in done.stderr
    answer = json.loads(done.stdout)
    assert [one["file"] for one in answer] == [str(path) for path in paths]
    for one, row in zip(answer, rows, strict=True):
        whole = sum(np.exp(score) for score in one["similarities"].values())
        plain = {name: np.exp(score) / whole for name, score in one["similarities"].items()}
        assert plain == pytest.approx(row["probabilities"], abs=1e-5)
        assert one["class"] == row["predicted"]
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    table = verb("zeroshot", paths[0], "--csv").stdout.splitlines()
    assert table[0].split(",")[:6] == ["file", *benchmark.plugin.classes]
    done = verb("zeroshot", tmp_path / "torn.png")
    assert done.exit_code == 1
    assert "is no image that can be read" in done.stderr


def test_zero_shot_accuracy_and_picture_follow_from_the_saved_probabilities(home: Path, verb: Mu) -> None:
    assert verb("zeroshot", "--split", "test").exit_code == 0
    rows = samples(home, "zeroshot-phantom-test")
    right = [max(row["probabilities"], key=row["probabilities"].get) == row["class"] for row in rows]
    result = json.loads((results(home) / "zeroshot-phantom-test.json").read_text())
    found = metrics(home, "zeroshot-phantom-test")["zero-shot accuracy"]
    assert found["value"] == pytest.approx(np.mean(right))
    assert found["low"] <= found["value"] <= found["high"]
    assert np.trace(result["confusion"]) == sum(right)
    assert (result["prompt_set"], result["prompts_per_class"], result["ensemble"]) == ("report", 15, "max")
    with Image.open(results(home) / "zeroshot-phantom-test.confusion.png") as picture:
        assert len(picture.convert("RGB").getcolors(100_000) or ()) > 10


def test_prompts_saved_and_edited_are_used(home: Path, verb: Mu, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    assert verb("zeroshot", "--data", "phantom", "--save-prompts", path).stdout.strip() == str(path)
    assert verb("zeroshot", "--split", "test").exit_code == 0
    assert verb("zeroshot", "--split", "test", "--prompts", path).exit_code == 0
    mine, theirs = (
        json.loads((results(home) / f"{name}-phantom-test.json").read_text())
        for name in ("zeroshot-mine", "zeroshot")
    )
    assert (mine["prompt_set"], theirs["prompt_set"]) == ("mine", "report")
    assert mine["prompts"] == theirs["prompts"]
    assert mine["prompts_hash"] == theirs["prompts_hash"]
    assert mine["metrics"] == theirs["metrics"]
    path.write_text(path.read_text().replace("Atelectasis:\n", "Atelectasis:\n- quite another thing\n"))
    assert verb("zeroshot", "--split", "test", "--prompts", path, "--count", "0").exit_code == 0
    edited = json.loads((results(home) / "zeroshot-mine-all-prompts-phantom-test.json").read_text())
    assert "quite another thing" in edited["prompts"]["Atelectasis"]
    assert edited["prompts_hash"] != theirs["prompts_hash"]
    done = verb("zeroshot", "--data", "phantom", "--save-prompts", path)
    assert done.exit_code == 1
    assert "exists already" in done.stderr


def test_one_class_or_none_and_a_class_without_images(
    home: Path, verb: Mu, benchmark: Benchmark, tmp_path: Path
) -> None:
    keys: dict[int, list[str]] = {}
    for i, label in enumerate(benchmark.source.labels.tolist()):
        keys.setdefault(label, []).append(benchmark.source.shards.key(i))
    listed = tmp_path / "some.txt"
    listed.write_text("\n".join(keys[2]))
    for words in (("retrieve", "--rerank", 2), ("zeroshot",)):
        done = verb(*words, "--ids", listed)
        assert done.exit_code == 1
        assert "two or more" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 2  # which run, and what is wrong
    listed.write_text("\n".join(keys[-1]))
    assert "no sample with exactly one class" in verb("zeroshot", "--ids", listed).stderr
    for one, two in ((0, 2), (1, 3)):  # as many each time, under the same name
        listed.write_text("\n".join(keys[one] + keys[two]))
        assert verb("zeroshot", "--ids", listed).exit_code == 0
        found = {row["key"] for row in samples(home, "zeroshot-phantom-ids-some")}
        assert found == {*keys[one], *keys[two]}
    listed.write_text("\n".join(keys[0] + keys[2] + keys[3]))
    done = verb("zeroshot", "--ids", listed)
    assert done.exit_code == 0
    assert "auroc: left out Cardiomegaly, Pleural Effusion" in done.stderr
    result = json.loads((results(home) / "zeroshot-phantom-ids-some.json").read_text())
    assert result["n"] == len(keys[0] + keys[2] + keys[3])
    assert result["per_class"]["Cardiomegaly"]["positives"] == 0
    done = verb("retrieve", "--ids", listed, "--rerank", "500")
    assert done.exit_code == 1
    assert "--rerank 500: there are only" in done.stderr


def test_another_data_set_is_measured_on_its_benchmark(home: Path, verb: Mu, tmp_path: Path) -> None:
    write_raw(tmp_path / "raw")
    prepare("rsna", tmp_path / "raw", home / "data" / "shards" / "rsna", "per_class=10")
    done = verb("zeroshot", "--data", "rsna", "--json")
    assert done.exit_code == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["split"], result["n"], result["prompt_set"]) == ("zeroshot", 20, "gloria")
    assert (result["prompts_per_class"], result["ensemble"]) == (10, "max")
    assert {name: len(texts) for name, texts in result["prompts"].items()} == {"Pneumonia": 10, "Normal": 10}
    done = verb("zeroshot", "--data", "rsna", "--prompts", "all", "--json")
    assert "rsna/zeroshot, prompts gloria: confusion matrix" in done.stderr
    others = {one["prompt_set"]: one["prompts_hash"] for one in json.loads(done.stdout)}
    assert list(others) == ["gloria", "ours", "observed"]
    assert len(set(others.values())) == 3
    assert others["gloria"] == result["prompts_hash"]
    done = verb("retrieve", "--data", "rsna")
    assert done.exit_code == 1
    assert "0 samples with text" in done.stderr
    assert verb("zeroshot", "--data", "rsna", "--split", "test").exit_code == 0
    done = verb("zeroshot", "--data", "siim")
    assert done.exit_code == 1
    assert "mu prepare" in done.stderr
    assert os.environ["MU_DATA"] == str(home / "data")


def test_the_page_of_a_run_shows_its_losses_results_and_pictures(
    home: Path, verb: Mu, tmp_path: Path
) -> None:
    assert verb("zeroshot", "--split", "test").exit_code == 0
    done = verb("score", "small", "--page")
    assert done.exit_code == 0
    page = Path(done.stdout.strip())
    assert page == home / "runs" / "small" / "page" / "index.html"
    moved = shutil.copytree(home / "runs" / "small", tmp_path / "moved") / "page" / "index.html"
    gallery = Gallery(moved)
    pictures = [str(attrs["src"]) for tag, attrs in gallery.tags if tag == "img"]
    assert any(tag == "table" and attrs.get("class") == "confusion" for tag, attrs in gallery.tags)
    for source in pictures:
        with Image.open(inline(source)) as image:
            image.load()
    log = [json.loads(line) for line in (home / "runs" / "small" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if line["event"] == "train"]
    drawn = [attrs for tag, attrs in gallery.tags if tag == "polyline" and attrs["class"] == "train"]
    assert len(str(drawn[0]["points"]).split()) == len(steps)
    assert any("ITC loss" in said and f"from {steps[0]['itc']:.3g} to" in said for said in gallery.figures)
    value = metrics(home, "zeroshot-phantom-test")["zero-shot accuracy"]["value"]
    assert f">{value:.3f}<" in moved.read_text()
    assert "://" not in moved.read_text()


def test_other_prompts_of_a_set_do_not_replace_the_benchmark(home: Path, verb: Mu) -> None:
    assert verb("zeroshot", "--split", "test").exit_code == 0
    before = (results(home) / "zeroshot-phantom-test.json").read_bytes()
    assert verb("zeroshot", "--split", "test", "--count", 2, "--seed", 3).exit_code == 0
    assert (results(home) / "zeroshot-phantom-test.json").read_bytes() == before
    other = json.loads((results(home) / "zeroshot-2-prompts-seed-3-phantom-test.json").read_text())
    assert (other["prompts_per_class"], other["seed"]) == (2, 3)


def test_what_is_printed_was_measured_now_where_nothing_can_be_written(
    home: Path, verb: Mu, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verb("zeroshot", "--split", "test").exit_code == 0
    monkeypatch.setattr(Run, "writable", False)
    done = verb("zeroshot", "--split", "test", "--ensemble", "mean", "--format", "json")
    assert done.exit_code == 0, done.output
    (printed,) = json.loads(done.stdout)
    assert printed["ensemble"] == "mean"
    assert "confusion matrix in" not in done.stderr
    assert not (results(home) / "zeroshot-mean-phantom-test.json").exists()


def test_labels_are_those_of_the_plugin_and_not_of_the_cache(
    home: Path, verb: Mu, benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verb("zeroshot", "--split", "test").exit_code == 0
    first, *_ = benchmark.plugin.classes
    single = int((benchmark.source.labels >= 0).sum())
    of_first = int((benchmark.source.labels == 0).sum())
    assert of_first
    plugin, class_of = type(benchmark.plugin), type(benchmark.plugin).class_of

    def without_first(self: object, labels: dict[str, float | None]) -> int | None:
        return class_of(self, {**labels, first: 0.0})  # type: ignore[arg-type]

    monkeypatch.setattr(plugin, "class_of", without_first)
    assert verb("zeroshot", "--split", "test").exit_code == 0
    measured = json.loads((results(home) / "zeroshot-phantom-test.json").read_text())
    expected = [without_first(benchmark.plugin, row["labels"]) for row in rows_of(benchmark)]
    assert measured["n"] == sum(label is not None for label in expected) != single
    assert measured["per_class"][first]["positives"] == 0


def rows_of(benchmark: Benchmark) -> list[dict[str, Any]]:
    shards = benchmark.source.shards
    return [shards.read(number)[1] for number in range(len(shards))]


def test_samples_are_named_once(verb: Mu, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("a\n")
    for words in (("zeroshot",), ("retrieve",)):
        done = verb(*words, "--split", "valid", "--ids", tmp_path / "some.txt")
        assert done.exit_code == 2
        assert "--split and --ids name the samples; give one of them" in done.stderr


def test_prompts_are_saved_of_shards_that_lie_elsewhere(home: Path, verb: Mu, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"{n}.png,{('ill', 'well')[n % 2]},{('train', 'valid', 'test')[n % 3]}" for n in range(6)]
    table.write_text("image,class,split\n" + "\n".join(rows) + "\n")
    for n in range(6):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (32, 32), np.uint8)).save(
            tmp_path / f"{n}.png"
        )
    (tmp_path / "p.yaml").write_text("ill: [Ill.]\nwell: [Well.]\n")
    words = (
        "--out",
        tmp_path / "shards",
        "--name",
        "mine",
        "--size",
        32,
        "-o",
        f"prompts={tmp_path / 'p.yaml'}",
    )
    assert verb("prepare", "table", "--raw", table, *words).exit_code == 0
    run = Path(shutil.copytree(home / "runs/small", home / "runs/elsewhere"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] |= {"dataset": "mine", "shards": str(tmp_path / "shards")}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = verb("zeroshot", "--run", "elsewhere", "--save-prompts", tmp_path / "saved.yaml")
    assert done.exit_code == 0, done.output
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text()) == {"ill": ["Ill."], "well": ["Well."]}
