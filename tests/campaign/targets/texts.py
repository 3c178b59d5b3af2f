"""Readers of prompts, key lists, tokenizers, and JSON lines of reports, samples and outputs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.campaign.targets.target import SENTINEL, Target

CLASSES = ("Edema", "Pneumonia")


def make_prompts(folder: Path, home: Path) -> None:
    (folder / "prompts.yaml").write_text(
        "Edema: [mild edema, 'edema, both sides']\nPneumonia: [pneumonia left]\n"
    )
    (folder / "requests.csv").write_text('prompt,class\nmild edema,Edema\n"a, b",\nleft,Pneumonia\n')
    (folder / "requests.txt").write_text("mild edema\n\nclear lungs\n")
    (folder / "keys.txt").write_text("s00001\ns00002\n\ns00003\n")


def read_prompts(folder: Path, path: Path) -> None:
    from medunifier_cli.data.subset import read_keys
    from medunifier_cli.evaluate.retrieval import prompts
    from medunifier_cli.evaluate.synthesis.requests import read_requests
    from tests.hand_made import HandMade

    if path.suffix == ".yaml":
        prompts.read_prompts(path, CLASSES)
    if path.stem == "keys":
        read_keys(path)
    else:
        read_requests("", str(path), HandMade())


def make_tokenizer(folder: Path, home: Path) -> None:
    import shutil

    shutil.copytree(home / "runs/base/tokenizer", folder / "plain")
    words = (folder / "plain/vocab.txt").read_text().split("\n")
    vocab = {word: number for number, word in enumerate(words) if word}
    (folder / "json").mkdir()
    saved = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab},
    }
    (folder / "json/tokenizer.json").write_text(json.dumps(saved))


def read_tokenizer(folder: Path, path: Path) -> None:
    from medunifier_cli.data.texts.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(str(path.parent))
    tokenizer.decode(tokenizer.encode("no pleural effusion", 24))


def make_lines(folder: Path, home: Path) -> None:
    reports = [
        {
            "key": f"s{n}",
            "dataset": "phantom",
            "subject": f"p{n // 2}",
            "reference": f"{SENTINEL} heart is normal {n}",
            "hypothesis": f"heart is {SENTINEL} large {n}",
        }
        for n in range(4)
    ]
    outputs = [
        {
            "key": f"s{n}",
            "class": CLASSES[n % 2],
            "probabilities": {"Edema": 0.1 * n, "Pneumonia": 1 - 0.1 * n},
        }
        for n in range(6)
    ]
    ranks = [
        {
            "key": f"s{n}",
            "class": CLASSES[n % 2],
            "text": n,
            "image_to_text": [f"s{m}" for m in range(4)],
            "text_to_image": [f"s{m}" for m in range(4)],
        }
        for n in range(4)
    ]
    for name, rows in (("a", reports), ("b", reports), ("outputs", outputs), ("ranks", ranks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.constant.txt").write_text(f"{SENTINEL} heart is normal\n")


def read_lines(folder: Path, path: Path) -> None:
    from medunifier_cli.evaluate.reports.comparing import compare_files
    from medunifier_cli.evaluate.reports.reporting import score_file
    from medunifier_cli.evaluate.tables.saved_outputs import score_outputs

    _few_draws()
    if path.stem in ("outputs", "ranks"):
        score_outputs(path)
    elif path.stem == "b":
        compare_files(folder / "a.jsonl", path, draws=5)
    else:
        score_file(folder / "a.jsonl")


def _few_draws() -> None:
    """Intervals from 5 resamples: they are the bulk of the time, and read nothing."""
    from medunifier_cli.scores import bootstrap
    from medunifier_cli.scores.text import report

    for function in (
        bootstrap.mean_intervals,
        bootstrap.intervals,
        bootstrap.resample_counts,
        report.report_scores,
    ):
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        defaults = list(function.__defaults__ or ())
        for number, name in enumerate(names[len(names) - len(defaults) :]):
            if name == "draws":
                defaults[number] = 5
        function.__defaults__ = tuple(defaults)


SETTINGS = {"model": "base", "seed": 0, "temperature": 1.0}


def make_samples(folder: Path, home: Path) -> None:
    import numpy as np

    from medunifier_cli.evaluate.synthesis.sample_folder import SampleFolder

    made = SampleFolder(folder / "made", SETTINGS)
    for n in range(3):
        made.add(
            n, f"{n:06d}.png", np.full((32, 32), 40 * n, np.uint8), {"seed": n, "prompt": f"{SENTINEL} edema"}
        )
    made.finish()


def read_samples(folder: Path, path: Path) -> None:
    from medunifier_cli.evaluate.synthesis.sample_folder import SampleFolder

    SampleFolder(folder / "made", SETTINGS).finish()


TARGETS = [
    Target("prompts, requests and key lists", 30, ("*",), make_prompts, read_prompts),
    Target("tokenizer", 20, ("*/*",), make_tokenizer, read_tokenizer, batch=100),
    Target("reports and outputs (JSON lines)", 8, ("*",), make_lines, read_lines, fresh=True, batch=100),
    Target(
        "samples",
        6,
        ("made/*.jsonl", "made/*.json", "made/*.png"),
        make_samples,
        read_samples,
        fresh=True,
        batch=100,
    ),
]
