"""All verbs that measure, in small blocks: in this process, or on two ranks.

python -m tests.run.sharing_ranks ROOT

ROOT has the data and runs of `small_priors.fit_small_priors`. Each rank writes what it has computed to
ROOT/rank-N.json; see `tests.unit.distributed.ranks` for ROOT/ranks.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from medunifier_cli.cli import mu
from medunifier_cli.cluster.options import JobOption
from medunifier_cli.evaluate import codes
from medunifier_cli.evaluate.films import likeness
from medunifier_cli.evaluate.reports import writer
from medunifier_cli.evaluate.retrieval import embed, rerank
from medunifier_cli.evaluate.shared import sharing
from medunifier_cli.evaluate.shared.ranks import _on_rank
from medunifier_cli.evaluate.synthesis import copies, image_sets
from medunifier_cli.scores.text import meteor
from tests.unit.distributed import ranks

BLOCKS: dict[Any, dict[str, int]] = {
    embed: {"BATCH": 8}, writer: {"BATCH": 5}, likeness: {"BATCH": 8}, rerank: {"IMAGES_AT_ONCE": 7},
    image_sets: {"BATCH": 8}, copies: {"CHUNK": 4, "SEARCHED": 12}, codes: {"BATCH": 6},
}  # fmt: skip
"""So that each verb has several, and the last ones are not full."""


def commands(out: Path) -> list[list[str]]:
    """What is asked for; later ones read what earlier ones have written to `out`."""
    of_test = ("--run", "model", "--split", "test")
    lines: list[tuple[object, ...]] = [
        ("retrieve", *of_test, "--rerank", 5),
        ("report", *of_test, "--limit", 23, "--sample", "nucleus", "--max-tokens", 9,
         "--batch-size", 4, "--out", out / "reports"),
        ("synthesize", "--run", "priors", "--n", 27, "--prompts", "report", "--guidance", 2,
         "--batch-size", 8, "--out", out / "new"),
        ("synthesize", "--run", "model", "--reconstruct", "test", "--n", 27, "--out", out / "rebuilt"),
        ("zeroshot", "--run", "model", "--batch-size", 3,
         *(out / "new" / f"{number:06d}.png" for number in range(10))),
        ("report", "--run", "model", "--max-tokens", 9, out / "rebuilt"),
        ("score", "model", "--fake", out / "new", "--real", "valid", "--copies", "--heldout", "valid"),
    ]  # fmt: skip
    return [[str(word) for word in line] for line in lines]


def run_all(root: Path) -> None:
    """Run every command to its end."""
    torch.set_num_threads(1)  # their number decides the order of sums
    for words in commands(root / "out"):
        context = click.Context(mu)
        command = mu.get_command(context, words[0])
        assert command is not None
        options = command.make_context(words[0], words[1:], context).params
        of_job = {param.name for param in command.params if isinstance(param, JobOption)}
        rest = {name: value for name, value in options.items() if name not in of_job | {"num_processes"}}
        assert command.callback is not None
        inspect.unwrap(command.callback)(sbatch=None, **rest)


@click.command()
def everything(root: Path) -> None:
    """Stands for a verb."""


everything.callback.__wrapped__ = run_all  # type: ignore[union-attr]


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    """Set the sizes of blocks; and no METEOR, whose program takes seconds to start."""
    patch.setattr(meteor.shutil, "which", lambda _: None)
    for module, sizes in BLOCKS.items():
        for name, size in sizes.items():
            patch.setattr(module, name, size)


def work_of(parts: Iterator[Any]) -> str:
    """Name of the function that computes parts."""
    compute = parts.gi_frame.f_locals.get("compute", parts)  # type: ignore[attr-defined]
    while isinstance(compute, partial):
        within = compute.func.__name__ in ("_picked_and_computed", "_read_and_compute")
        compute = compute.args[0] if within else compute.func
    return str(compute.__name__)


def measure(root: Path, _: str) -> None:
    """One rank."""
    computed, next_part = Counter[str](), sharing._next

    def counted(parts: Iterator[Any]) -> tuple[int, Any]:
        name = work_of(parts)
        kind, part = next_part(parts)
        computed[name] += kind == sharing.PART and part is not None
        return kind, part

    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch)
        patch.setattr(sharing, "_next", counted)
        _on_rank(__name__, "everything", {"root": root})
    (root / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(computed))


def main(root: Path) -> None:
    """Both ranks, forked, as imports take longer than the verbs."""
    (root / "ranks").mkdir()
    ranks.main(root / "ranks", ["everything"], partial(measure, root))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
