"""One rank of `test_ranks`: the same global batches, split over however many ranks there are.

python -m tests.parity.two_ranks OUT RANK RANKS
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.distributed import draws, world
from medunifier_cli.evaluate.pair_scores import PairScores
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.train.compiling import compiled
from medunifier_cli.train.finite import Counts, Skips
from tests.hand_made import WORDS, HandMade
from tests.tiny import DEC, draw_batch, part_of, tiny_model, tiny_recipe

PAIRS, STEPS = 6, 2
VARIANTS = {
    "loss codebook": (),
    "ema codebook": ("model.generator.codebook=ema",),
    "loss codebook, revival, batch-normed contrast": (
        "objectives.embed_norm=batch", "model.generator.revive_dead_codes=true",
    ),
    "ema codebook, revival, batch-normed features": (
        "model.generator.codebook=ema", "model.generator.ema_decay=0.9", "model.generator.feature_norm=batch",
        "model.generator.position_scale=0.1", "model.generator.revive_dead_codes=true",
    ),
    "loss codebook, revival in each step": (
        "model.generator.revive_dead_codes=true", "model.generator.ema_decay=0.5",
        "model.generator.revive_below=0.6",
    ),
    "random negatives, group norm": ("objectives.itm_negatives=random", "model.generator.norm=group"),
    "the authors' adapters, batch-normed features": (
        "model.generator.nonlinear=linear-relu-linear", "model.generator.upsample=nearest",
        "model.generator.residual=bottleneck", "model.generator.feature_norm=batch",
    ),
    "compiled": (),
    "no contrast": ("objectives.itc=0.0", "objectives.itm=0.0"),
}  # fmt: skip


def run(variant: str) -> dict[str, torch.Tensor]:
    """`steps` of a variant; compiled without the compiler's last step, which would round otherwise.

    One rank alone compiles nothing: the two that do have to equal what is written.
    """
    model = tiny_model(*VARIANTS[variant])
    with compiled(model, "eager") if variant == "compiled" and world.size() > 1 else nullcontext():
        return steps(model, variant)


def steps(model: MedUnifier, variant: str) -> dict[str, torch.Tensor]:
    """Two steps without an optimiser: losses, monitors, gradients and buffers, averaged over ranks."""
    objectives: torch.nn.Module = PretrainingLoss(model, DEC)
    if world.size() > 1:
        objectives = DistributedDataParallel(
            objectives, broadcast_buffers=False, find_unused_parameters=variant == "no contrast"
        )
    share = PAIRS // world.size()
    values = {}
    for step in range(STEPS):
        batch = draw_batch(PAIRS, seed=step, equal=[(0, 4)])
        mine = part_of(batch, slice(world.rank() * share, (world.rank() + 1) * share))
        objectives.zero_grad()
        losses, monitors = objectives(mine, draws.generator(0, draws.REVIVAL, step))
        losses["total"].backward()
        monitors.pop("itc_accuracy", None)  # texts 0 and 4 are equal: the best one is for rounding to say
        for name, value in {**losses, **monitors}.items():
            values[f"step {step}, {name}"] = world.mean(value.double())
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                values[f"step {step}, gradient of {name}"] = parameter.grad.clone()
    for name, tensor in model.state_dict().items():
        values[f"state {name}"] = tensor.detach().clone()
    return values


def skip() -> dict[str, object]:
    """Three steps of a plain model, where the loss of the last rank alone is infinite in the second."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    module = DistributedDataParallel(model) if world.size() > 1 else model
    skips = Skips(model, torch.device("cpu"), limit=9, scaled=True, counts=Counts())
    skipped, norms = [], []
    for step in range(3):
        model.zero_grad()
        skips.begin()
        loss = module(torch.full((2, 3), float(world.rank() + 1))).mean()
        if step == 1 and world.rank() == world.size() - 1:
            loss = loss + torch.inf  # its gradient alone would be finite, on every rank
        (loss * skips.factor(loss)).backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        skipped.append(skips.decide(norm).item())
        norms.append(norm)
        skips.end()
    return {"skipped": skipped, "counts": skips.read().shown(), "norms": torch.stack(norms)[[0, 2]]}


def scores(shards: Path) -> dict[str, float]:
    """What a validation scores, on 70 pairs: two whole blocks and a part of one."""
    recipe = tiny_recipe("model.qformer.init_std=0.3")
    tokenizer = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)
    source = SplitSource(Shards.open(shards, "valid"), tokenizer, recipe.data, recipe.text, HandMade())
    torch.manual_seed(0)
    model = MedUnifier(recipe, tokenizer.size).eval()
    return PairScores(source, 70, matching=True).measure(model, torch.device("cpu"))


def main() -> None:
    out, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=ranks)
    values = {variant: run(variant) for variant in VARIANTS}
    torch.save(
        {
            "pid": os.getpid(),
            "rank": world.rank(),
            "size": world.size(),
            "values": values,
            "skip": skip(),
            "scores": scores(out / "shards"),
        },
        out / f"{rank}-of-{ranks}.pt",
    )
    world.leave()


if __name__ == "__main__":
    main()
