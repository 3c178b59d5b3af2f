"""What synthetic images are asked to show: one prompt, a file of them, or a data set's own class prompts."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import SPECIAL, PackedText
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.retrieval.prompts import prompts_of, read_prompts


@dataclass(frozen=True)
class ImageRequest:
    """One prompt."""

    prompt: str
    where: str
    """Where it was written, for messages."""
    name: str = ""
    """Class it asks for; empty where it asks for none in particular."""


def read_requests(prompt: str, prompts: str, plugin: DatasetPlugin) -> list[ImageRequest]:
    """What `--prompt TEXT` or `--prompts FILE|SET` ask for, in the order they are taken in turn.

    Args:
        prompts: `.txt` with a prompt a line, `.csv` with a column `prompt` and perhaps `class`, `.yaml` as
            `class: [prompt, ...]`, or the name of a prompt set of the data set. Of class prompts each class
            has its turn before any class has its second.

    Raises:
        DataError: a file that cannot be read or holds no prompt, or no such set.
    """
    if prompt:
        return [ImageRequest(prompt, "--prompt")]
    if not prompts:
        return []
    path = Path(prompts)
    kind = path.suffix.lower()
    if kind in (".yaml", ".yml") or not (kind or path.exists()):
        by_class = read_prompts(path, plugin.classes) if kind else prompts_of(plugin, prompts)
        rounds = zip_longest(*([(name, text) for text in texts] for name, texts in by_class.items()))
        return [
            ImageRequest(text, f"{prompts}, class {name}", name)
            for turn in rounds
            for name, text in filter(None, turn)
        ]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == ".csv":
                rows = csv.DictReader(file)
                if "prompt" not in (rows.fieldnames or ()):
                    raise DataError(f"{path}: a table of prompts needs a column `prompt`")
                found = [
                    ImageRequest(row["prompt"].strip(), f"{path}:{rows.line_num}", row.get("class") or "")
                    for row in rows
                ]
            else:
                found = [
                    ImageRequest(line.strip(), f"{path}:{number}") for number, line in enumerate(file, 1)
                ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file"
        raise DataError(f"{path}: cannot be read ({why})") from error
    found = [wish for wish in found if wish.prompt]
    if not found:
        raise DataError(f"{path}: no prompt in it")
    return found


def text_features(trained: PretrainedRun, wishes: Sequence[ImageRequest]) -> NDArray[np.float32]:
    """f_t_cls of each prompt [n, D], each read alone, so that no other prompt can change its last bits.

    Raises:
        DataError: a prompt that is empty or longer than the run's `text.max_tokens`; says which.
    """
    longest = trained.recipe.text.max_tokens
    known: dict[str, NDArray[np.float32]] = {}
    for wish in wishes:
        if wish.prompt in known:
            continue
        ids = trained.tokenizer.encode(wish.prompt, longest + 1)
        if len(ids) > longest:
            raise DataError(
                f"{wish.where}: a prompt of more than {longest} tokens, which is the run's text.max_tokens; "
                "shorten it"
            )
        if len(ids) <= SPECIAL:
            raise DataError(f"{wish.where}: an empty prompt")
        with torch.no_grad():
            packed = PackedText.of([ids], trained.device)
            known[wish.prompt] = trained.model.encode_text(packed)[0].float().cpu().numpy()
    return np.stack([known[wish.prompt] for wish in wishes])


def requests_hash(wishes: Sequence[ImageRequest]) -> str:
    """Short hash of prompts and classes, as a folder of samples carries it."""
    listed = [[wish.prompt, wish.name] for wish in wishes]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
