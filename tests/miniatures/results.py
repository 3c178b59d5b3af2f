"""Run folders with results as `mu` writes them, made by hand: recipe, metrics, and how they were measured."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIVE = ["Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion"]
BEAMS = {
    "how": "beam", "beams": 3, "length_penalty": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 0.9, "seed": 0,
    "min_tokens": 0, "max_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram": 0,
}  # fmt: skip
PROMPTS = {"prompt_set": "gloria", "prompts_per_class": 15, "ensemble": "max"}
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "retrieval": {"n": 1000, "classes": FIVE},
    "zeroshot": {"n": 1000, "classes": FIVE, **PROMPTS},
    "zeroshot rsna": {"classes": ["Pneumonia", "Normal"], "prompts_per_class": 10},
    "report": {"n": 3000, "limit": 0, "decoding": BEAMS},
    "finetune": {
        "fraction": 1.0, "head": "two-linear", "frozen": False, "balanced": False,
        "rates": {"model": 3e-6, "head": 3e-4}, "train": {"split": "train"},
    },
    "synthesis": {"real": {"name": "mimic-cxr/train", "n": 200_000}},
    "synthesis validation": {"fake": {"name": "mimic-cxr/valid", "n": 1700}},
    "synthesis reconstruction": {
        "fake": {"name": "rec", "n": 9, "own_model": True, "reconstructs": "mimic-cxr/train"}
    },
    "synthesis synthetic": {
        "fake": {
            "name": "new", "n": 9, "own_model": True, "prompted": False, "prior": "pixelsnail",
        },
    },
}  # fmt: skip
"""Facts with which a result was measured as in the paper, by `<task>` and `<task> <data set or split>`."""


def result(what: str, metrics: Mapping[str, float], **facts: Any) -> dict[str, Any]:
    """A result measured as in the paper, but for `facts`.

    Args:
        what: `<task> <dataset> <split>`.
        facts: top-level facts to change; None takes a fact away, as in a file of an older version.
    """
    task, dataset, split = what.split()
    kind = task.split("-")[0]
    body: dict[str, Any] = {"task": task, "dataset": dataset, "split": split}
    for key in (kind, f"{kind} {dataset}", f"{kind} {split}"):
        body |= copy.deepcopy(AS_PUBLISHED.get(key, {}))
    body["metrics"] = [{"name": k, "value": v, "floor": None, "unit": ""} for k, v in metrics.items()]
    return {key: value for key, value in {**body, **facts}.items() if value is not None}


def write_run(root: Path, name: str, recipe: str, results: list[dict[str, Any]]) -> Path:
    """A run folder with a recipe and hand-written results, each in a file of its own."""
    run = root / name
    (run / "results").mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for number, body in enumerate(results):
        stem = f"{body['task']}-{body['dataset']}-{body['split']}"
        (run / "results" / f"{stem}-{number}.json").write_text(json.dumps(body), encoding="utf-8")
    return run
