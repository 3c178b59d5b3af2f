"""Read the prompts of `mu synthesize`: one prompt, a file of prompts, or a prompt set of the data set."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import text_states
from medunifier_cli.data.batch import SPECIAL, PackedText
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.retrieval.prompts import LONGEST_PROMPT, prompts_of, read_prompts
from medunifier_cli.files import read_text, text_lines
from medunifier_cli.prior.contract import TextStates


@dataclass(frozen=True)
class ImageRequest:
    """What one synthetic image is requested to show."""

    prompt: str
    where: str
    """Where it was written, for messages."""
    name: str = ""
    """Requested class; empty for none in particular."""


def read_requests(prompt: str, prompts: str, plugin: DatasetPlugin, of_class: str = "") -> list[ImageRequest]:
    """What `--prompt`, `--prompts` and `--class` request, in the order in which images take them.

    Args:
        of_class: with `prompt`, the class that it requests; otherwise only the prompts of this class are
            taken, those of the data set's default set where `prompts` is empty. Empty for any.

    Raises:
        DataError: see `_all_requests`; or none of them is of the class.
    """
    if not of_class:
        return _all_requests(prompt, prompts, plugin)
    if prompt:
        requests, known = [ImageRequest(prompt, "--prompt", of_class)], list(plugin.classes)
    else:
        if not prompts:
            prompts_of(plugin, "")  # which says so where there is none
            prompts = next(iter(plugin.prompt_sets()))
        requests = [one for one in _all_requests("", prompts, plugin) if one.name == of_class]
        known = sorted({one.name for one in _all_requests("", prompts, plugin)} - {""})
    if of_class not in known:
        names = ", ".join(known) or "none"
        raise DataError(f"--class {of_class}: no class of {prompts or plugin.name}; there are: {names}")
    return requests


def _all_requests(prompt: str, prompts: str, plugin: DatasetPlugin) -> list[ImageRequest]:
    """Read what `--prompt TEXT` or `--prompts FILE|SET` request, in the order in which images take them.

    Args:
        prompt: one prompt; then `prompts` is not read.
        prompts: `.txt` with one prompt per line, `.csv` with a column `prompt` and optionally `class`,
            `.yaml` as `class: [prompt, ...]`, or the name of a prompt set of the data set. Prompts by class
            alternate: each class has its first prompt before any class has its second.
        plugin: the data set.

    Returns:
        The requests; none where both options are empty.

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
        by_class = read_prompts(path) if kind else prompts_of(plugin, prompts)
        # classes of the data set first, in its order; a file may name others
        by_class = {name: by_class[name] for name in (*plugin.classes, *by_class) if name in by_class}
        rounds = zip_longest(*([(name, text) for text in texts] for name, texts in by_class.items()))
        return [
            ImageRequest(text, f"{prompts}, class {name}", name)
            for turn in rounds
            for name, text in filter(None, turn)
        ]
    try:
        if kind == ".csv":
            rows = csv.DictReader(io.StringIO(read_text(path)))
            if "prompt" not in (rows.fieldnames or ()):
                raise DataError(f"{path}: a table of prompts needs a column `prompt`")
            requests = [
                # a row that is too short has None in its last columns
                ImageRequest(
                    (row["prompt"] or "").strip(), f"{path}:{rows.line_num}", (row.get("class") or "").strip()
                )
                for row in rows
            ]
        else:
            requests = [
                ImageRequest(line.strip(), f"{path}:{number}")
                for number, line in enumerate(text_lines(path), 1)
            ]
    except (OSError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read ({why})") from error
    requests = [request for request in requests if request.prompt]  # blank lines are allowed
    if not requests:
        raise DataError(f"{path}: no prompt in it")
    return requests


def text_features(pretrained: PretrainedRun, requests: Sequence[ImageRequest]) -> NDArray[np.float32]:
    """f_t_cls of each prompt, [n, D].

    Raises:
        DataError: see `_each_prompt`.
    """
    features = {}
    for prompt, packed in _each_prompt(pretrained, requests):
        with torch.no_grad():
            features[prompt] = pretrained.model.encode_text(packed)[0].float().cpu().numpy()
    return np.stack([features[request.prompt] for request in requests])


def token_states(pretrained: PretrainedRun, requests: Sequence[ImageRequest]) -> TextStates:
    """The states of the text pass at every token of each prompt, for priors that read texts so.

    Raises:
        DataError: see `_each_prompt`.
    """
    # As wide as the longest text that the run allows: the shape of attention to a text, and so the last bits
    # of its result, must not depend on the other prompts.
    longest = pretrained.recipe.text.max_tokens
    states: dict[str, TextStates] = {}
    for prompt, packed in _each_prompt(pretrained, requests):
        one = text_states(pretrained, packed)
        padded = F.pad(one.state_BMD.cpu(), (0, 0, 0, longest - one.state_BMD.shape[1]))
        states[prompt] = TextStates(padded, one.length_B.cpu())
    found = [states[request.prompt] for request in requests]
    return TextStates(torch.cat([one.state_BMD for one in found]), torch.cat([one.length_B for one in found]))


def _each_prompt(
    pretrained: PretrainedRun, requests: Sequence[ImageRequest]
) -> Iterator[tuple[str, PackedText]]:
    """Each different prompt with its tokens, alone.

    In a batch, other prompts could change the last bits of its features, and with them the codes sampled for
    it.

    Raises:
        DataError: a prompt that is empty or longer than the run's `text.max_tokens`; says which.
    """
    longest = pretrained.recipe.text.max_tokens
    seen = set()
    for request in requests:
        if request.prompt in seen:
            continue
        seen.add(request.prompt)
        # One token more than allowed is enough to see that a prompt is too long.
        ids = pretrained.tokenizer.encode(request.prompt[:LONGEST_PROMPT], longest + 1)
        if len(ids) > longest or len(request.prompt) > LONGEST_PROMPT:
            raise DataError(
                f"{request.where}: a prompt of more than {longest} tokens (the run's text.max_tokens); "
                "shorten it"
            )
        if len(ids) <= SPECIAL:
            raise DataError(f"{request.where}: an empty prompt")
        yield request.prompt, PackedText.of([ids], pretrained.device)


def requests_hash(requests: Sequence[ImageRequest]) -> str:
    """Short hash of prompts and classes; a folder of samples keeps it to refuse images of other prompts."""
    listed = [[request.prompt, request.name] for request in requests]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
