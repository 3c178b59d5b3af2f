"""`mu score --classifier` on images whose classes are known: real ones, passed off as synthetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medunifier_cli.evaluate.benchmark import Benchmark
from tests.run.small_priors import PRETRAIN, call, fit_small_priors
from tests.run.small_run import Mu, metrics, results


@pytest.fixture
def probe(home: Path, verb: Mu) -> Path:
    """Results of a classifier fitted on the training images."""
    folder = home / "runs" / "probe"
    if not folder.exists():
        changed = ("train.epochs=6", "train.threads=1", "train.tensorboard=false")
        options = [part for change in changed for part in ("-o", change)]
        done = verb("finetune", "probe-demo", "--run", "small", "--name", "probe", *options)
        assert done.exit_code == 0, done.output
    return folder / "results"


def save(folder: Path, benchmark: Benchmark, numbers: list[int], classes: list[str]) -> Path:
    """A folder as `mu synthesize --prompts` leaves it, of images of a split."""
    folder.mkdir()
    with (folder / "samples.jsonl").open("w") as file:
        for i, name in zip(numbers, classes, strict=True):
            (folder / f"{i:06}.png").write_bytes(benchmark.source.shards.image(i))
            file.write(
                json.dumps({"image": f"{i:06}.png", "sample": i, "prompt": name, "class": name}) + "\n"
            )
    return folder


def test_accuracy_is_that_of_the_classifiers_own_saved_scores(
    home: Path, verb: Mu, probe: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    lines = (probe / "finetune-phantom-test.samples.jsonl").read_text().splitlines()
    saved = [json.loads(line) for line in lines]
    predicted = [max(row["scores"], key=row["scores"].get) for row in saved]
    classes = benchmark.plugin.classes
    single = np.flatnonzero(benchmark.source.labels >= 0).tolist()
    truth = [classes[benchmark.source.labels[i]] for i in single]
    wrong = [classes[(classes.index(name) + k % 3) % len(classes)] for k, name in enumerate(truth)]
    fake = save(tmp_path / "fake", benchmark, single, wrong)
    done = verb("score", "small", "--fake", fake, "--classifier", "probe")
    assert done.exit_code == 0, done.output
    found = metrics(home, "conformance-phantom-synthetic-fake")
    hits = [predicted[i] == name for i, name in zip(single, wrong, strict=True)]
    real = [predicted[i] == name for i, name in zip(single, truth, strict=True)]
    assert 0 < sum(hits) < len(hits)
    assert sum(hits) != sum(real)
    metric = found["class asked for by prompt, accuracy"]
    assert metric["value"] == pytest.approx(np.mean(hits))
    assert 0 <= metric["low"] < metric["value"] < metric["high"] <= 1
    other = found["the same classifier on held-out real images, accuracy"]
    assert other["value"] == pytest.approx(np.mean(real))
    assert "the same classifier on those images reconstructed, accuracy" not in found, "trained without TIG"
    result = json.loads((results(home) / "conformance-phantom-synthetic-fake.json").read_text())
    confusion = np.array(result["confusion"])
    assert confusion.sum() == result["n"] == len(single)
    for c, name in enumerate(classes):
        of_class = [predicted[i] for i, one in zip(single, wrong, strict=True) if one == name]
        assert confusion[c].tolist() == [of_class.count(other) for other in classes]


@pytest.mark.parametrize(
    ("named", "classifier", "said"),
    [
        ("Fracture", "probe", "prompts for 'Fracture'; the classifier knows Atelectasis"),
        ("", "probe", "images without a requested class"),
        ("Edema", "small", "not a run of `mu finetune`"),
        ("Edema", "nobody", "no run `nobody`"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    verb: Mu, probe: Path, benchmark: Benchmark, tmp_path: Path, named: str, classifier: str, said: str
) -> None:
    fake = save(tmp_path / "fake", benchmark, [0, 1], [named, named])
    done = verb("score", "small", "--fake", fake, "--classifier", classifier)
    assert done.exit_code == 1
    assert said in done.stderr.splitlines()[-1]


def test_a_list_of_another_program_is_refused(
    verb: Mu, probe: Path, benchmark: Benchmark, tmp_path: Path
) -> None:
    fake = save(tmp_path / "fake", benchmark, [0], ["Edema"])
    (fake / "samples.jsonl").write_text('{"file": "000000.png"}\n')
    done = verb("score", "small", "--fake", fake, "--classifier", "probe")
    assert done.exit_code == 1
    assert "was not written by mu" in done.stderr.splitlines()[-1]


def test_a_classifier_of_another_image_size_judges(tmp_path: Path) -> None:
    """Of real images it sees what it saw in its own run, reconstructions and samples in the size it takes."""
    root = fit_small_priors(tmp_path / "home")
    short = ("-o", "train.threads=1", "-o", "train.tensorboard=false")
    small = ("-o", "data.image_size=16", "-o", "objectives.tig=0", "-o", "train.steps=2", "-o", "data.test=")
    assert call(root, "pretrain", PRETRAIN, "--name", "size-16", *small)[0] == 0
    ask = ("finetune", "probe-demo", "--run", "size-16", "--name", "probe-16", "-o", "train.epochs=1", *short)
    assert call(root, *ask)[0] == 0
    asked = ("--prompts", "report", "--n", 6, "--out", tmp_path / "asked")
    assert call(root, "synthesize", "--run", "priors", *asked)[0] == 0
    ask = ("score", "priors", "--fake", tmp_path / "asked", "--classifier", "probe-16")
    code, printed = call(root, *ask)
    assert code == 0, printed
    result = json.loads((root / "runs/priors/results/conformance-phantom-synthetic-asked.json").read_text())
    found = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert "the same classifier on those images reconstructed, accuracy" in found
    saved = (root / "runs/probe-16/results/finetune-phantom-test.samples.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, saved) if sum(row["truth"].values()) == 1]
    right = [row["truth"][max(row["scores"], key=row["scores"].get)] for row in rows]
    assert found["the same classifier on held-out real images, accuracy"] == pytest.approx(np.mean(right))
