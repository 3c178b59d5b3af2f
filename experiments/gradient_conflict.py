"""Whether TIG and the other objectives pull shared weights of a trained run in the same direction.

For each batch of the training split the gradient of every objective, times its weight, is computed apart.
For each part of the model that several objectives reach, cosines of two objectives' gradients and their
lengths are averaged over the batches: -1 is conflict, 0 indifference, 1 agreement, and the yardstick is the
cosine of one objective's gradients on two batches.

python -m experiments.gradient_conflict RUN [RUN ...]
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping

import click
import numpy as np
import torch
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
from medunifier_cli.distributed import draws
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.stages.pretrain import open_split

PARTS = {
    "image encoder": r"^vit\.|^vision_norm\.",
    "queries": r"^qformer\.query_tokens$",
    "image-text encoder": r"^qformer\.blocks\.",
    "word embeddings": r"^qformer\.(word|position|norm)\.",
}
"""Part of the model -> which parameters it has."""
Gradients = Mapping[str, Tensor]
"""Part -> gradient of all its parameters, flat."""


def gradients(module: PretrainingLoss, loss: Tensor) -> dict[str, Tensor]:
    """Of one objective, at each part that it reaches."""
    named = [(name, p) for name, p in module.model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    flat: dict[str, list[Tensor]] = defaultdict(list)
    for (name, parameter), gradient in zip(named, found, strict=True):
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), None)
        if part:
            flat[part].append((torch.zeros_like(parameter) if gradient is None else gradient).flatten())
    return {part: torch.cat(pieces) for part, pieces in flat.items()}


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two gradients; nan where an objective does not reach a part."""
    lengths = float(one.norm() * other.norm())
    return float(one @ other) / lengths if lengths else float("nan")


def measure(name: str, batches: int, size: int) -> dict[tuple[str, str, str], list[float]]:
    """(part, objective, objective) -> cosine on each batch; one with itself: two batches."""
    trained = restore(pretrained_run(name, "pretrain"))
    module = PretrainingLoss(trained.model.train(), trained.tokenizer.dec_id)
    split = open_split(trained.recipe, trained.recipe.data.train, trained.tokenizer)
    weights = trained.recipe.objectives.weights()
    out: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    last: Mapping[str, Gradients] = {}
    order = draws.philox(0).permutation(len(split))
    for number in range(batches):
        samples = order[number * size : (number + 1) * size]
        torch.manual_seed(number)  # dropout
        losses, _ = module(split.read(samples, samples, split.empty(len(samples))))
        now = {key: gradients(module, weight * losses[key]) for key, weight in weights.items()}
        for part in PARTS:
            for one, other in itertools.combinations(now, 2):
                out[part, one, other].append(cosine(now[one][part], now[other][part]))
            for key, of_parts in now.items():
                out[part, key, "length"].append(float(of_parts[part].norm()))
                if last:
                    out[part, key, key].append(cosine(last[key][part], of_parts[part]))
        last = now
    return out


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option("--batches", type=click.IntRange(2), default=8, show_default=True)
@click.option("--size", type=click.IntRange(2), default=64, show_default=True, help="Pairs of a batch.")
def main(runs: tuple[str, ...], batches: int, size: int) -> None:
    """Print a Markdown table for each run, by name or folder: mean over batches ± standard error."""
    for name in runs:
        found = measure(name, batches, size)
        pairs = sorted(
            {key[1:] for key in found}, key=lambda pair: (pair[1] == "length", pair[0] == pair[1], pair)
        )
        click.echo(f"{name}\n\n| | {' | '.join(PARTS)} |\n|---{'|---' * len(PARTS)}|")
        for one, other in pairs:
            title = f"length of {one}" if other == "length" else f"{one}, {other}"
            cells = []
            for part in PARTS:
                values = np.array(found[part, one, other])
                error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
                cells.append(f"{values.mean():.3f} ± {error:.3f}")
            click.echo(f"| {title} | {' | '.join(cells)} |")
        click.echo()


if __name__ == "__main__":
    main()
