"""Select the prompts that describe each class in zero-shot classification; read and write them as YAML."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.errors import DataError
from medunifier_cli.files import write_text
from medunifier_cli.parsing import read_yaml

ALL = "all"
"""Every prompt set of a data set."""
LONGEST_PROMPT = 20_000
"""Characters of a prompt that is tokenised at all: no model reads a tenth of it."""
Prompts = Mapping[str, Sequence[str]]
"""Class name -> prompts."""


def prompts_of(plugin: DatasetPlugin, name: str) -> Prompts:
    """A prompt set of a data set; its default set if `name` is empty.

    Raises:
        DataError: there is none of that name.
    """
    sets = plugin.prompt_sets()
    if not sets:
        raise DataError(f"{plugin.name} comes without zero-shot prompts; give a YAML file with --prompts")
    if name and name not in sets:
        raise DataError(f"{plugin.name} has no prompt set {name!r}; there are: {', '.join(sets)}")
    return sets[name or next(iter(sets))]


def read_prompts(path: Path, classes: Sequence[str] = ()) -> Prompts:
    """A YAML file of `class: [prompt, ...]`.

    Args:
        classes: those that are wanted, in their order; empty for all of the file in its own.

    Raises:
        DataError: no such file, not of that form, or a class without prompts.
    """
    advice = "write it as `class: [prompt, prompt, ...]`"
    content = read_yaml(path, dict[str, list[str]], DataError, advice)
    if not all(content.values()):
        raise DataError(f"{path}: a class without prompts; {advice}")
    missing = [name for name in classes if name not in content]
    if missing:
        raise DataError(f"{path}: no prompts for {', '.join(missing)}")
    return {name: content[name] for name in classes or content}


def select_prompt_sets(plugin: DatasetPlugin, name: str) -> dict[str, Prompts]:
    """The prompt sets that `--prompts` selects: name for results -> prompts.

    Args:
        name: a set of the data set, `all` of them, a YAML file, or empty for the data set's default set. The
            default set gets the empty name, so that its result is the one the paper's tables look for.

    Raises:
        DataError: there is none of that name, or the file cannot be used.
    """
    sets = plugin.prompt_sets()
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        # Results are filed under the stem: gloria.yaml would pass for that set, and mean.yaml for the default
        # set under `--ensemble mean`.
        if path.stem in (*sets, "mean"):
            raise DataError(
                f"{path}: its results would be filed as those of {path.stem!r}, which {plugin.name} has "
                "already; rename the file"
            )
        return {path.stem: read_prompts(path, plugin.classes)}
    default = next(iter(sets), "")
    names = list(sets) if name == ALL and sets else [name]
    return {"" if one == default else one: prompts_of(plugin, one) for one in names}


def as_yaml(prompts: Prompts, classes: Sequence[str], source: str) -> str:
    """Prompts as the text of a file that the user can edit and `read_prompts` reads.

    Args:
        source: where they come from, for the first line.
    """
    content = {name: list(prompts[name]) for name in classes if name in prompts}
    head = f"# Zero-shot prompts, class: [prompt, ...]; from {source}.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)


def write_prompts(path: Path, plugin: DatasetPlugin, name: str) -> None:
    """Write a prompt set of a data set as YAML, to edit.

    Raises:
        DataError: there is no set of that name, or the file exists, or its folder does not.
    """
    prompts = prompts_of(plugin, name)
    if path.exists():
        raise DataError(f"{path}: exists already; name another file, or remove it")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder; make it first")
    text = as_yaml(prompts, tuple(prompts), f"{plugin.name}, set {name or 'default'}")
    write_text(path, text)


def sample_prompts(prompts: Prompts, classes: Sequence[str], count: int, seed: int) -> dict[str, list[str]]:
    """`count` different prompts of each class, in their order; all if there are fewer or `count` is 0.

    The prompts of one class do not depend on those of the others.

    Raises:
        DataError: a class without prompts.
    """
    sampled = {}
    for number, name in enumerate(classes):
        texts = list(dict.fromkeys(prompts.get(name, ())))
        if not texts:
            raise DataError(f"no zero-shot prompt for class {name!r}")
        if 0 < count < len(texts):
            indices = np.random.default_rng((seed, number)).choice(len(texts), count, replace=False)
            texts = [texts[i] for i in sorted(indices)]
        sampled[name] = texts
    return sampled


def fingerprint(prompts: Prompts) -> str:
    """Short hash of the prompts for result files."""
    return hashlib.sha256(json.dumps({k: list(v) for k, v in prompts.items()}).encode()).hexdigest()[:16]
