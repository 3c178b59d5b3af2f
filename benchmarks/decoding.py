"""Cached beam search against full recomputation: 12 layers of 768, 32 queries, 95 tokens, 2 threads.

The slow side encodes the image once, but for every new token runs the whole text through the decoder again,
all positions in one pass. Its cost grows with the length of the text, so it is timed at a given number of
evenly spread lengths, and their mean is scaled to all 94. A full search over fewer tokens checks that both
sides write the same text. Weights are random, and [SEP] is forbidden, so that every text has full length.

    python benchmarks/decoding.py [--images 4] [--beams 3] [--lengths 6] [--rounds 1] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = (
    "passive"  # before torch: a thread that waits must not count as one that works
)

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medunifier_cli.data.contract import PackedText
from medunifier_cli.evaluate.reports.decoding import Constraints, beam_search
from medunifier_cli.evaluate.reports.text_cache import TextCache
from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.recipe.load import load_recipe

THREADS, VOCABULARY, LONGEST = 2, 30523, 95
FIRST, END, CHECKED = VOCABULARY - 1, 3, 12
"""[DEC], [SEP], and the tokens of the search that both sides do."""
CPU = torch.device("cpu")
SMALL_IMAGE = (
    "model.vit.name=vit_tiny_patch16_224", "model.vit.weights=random", "model.vit.depth=1",
    "model.vit.width=48", "model.vit.heads=4", "model.qformer.weights=random", "objectives.tig=0",
)  # fmt: skip
"""Of the paper's model, all but the image side, which no token depends on."""
TINY = (
    "model.qformer.layers=2",
    "model.qformer.width=32",
    "model.qformer.heads=4",
    "model.qformer.ffn_width=64",
)


class Recomputed:
    """The step function without a cache."""

    def __init__(self, model: MedUnifier, memory: ImageMemory) -> None:
        self.model, self.memory = model, memory
        self.tokens_RT = torch.empty(len(memory.query_BQD), 0, dtype=torch.int64)

    def step(self, token_R: Tensor, parent_R: Tensor) -> Tensor:
        """Logits [R, K] of the next token."""
        self.memory = _rows(self.memory, parent_R)
        self.tokens_RT = torch.cat([self.tokens_RT[parent_R], token_R[:, None]], dim=1)
        return whole_text(self.model, self.memory, self.tokens_RT)


def whole_text(model: MedUnifier, memory: ImageMemory, tokens_RT: Tensor) -> Tensor:
    """Logits [R, K] after texts of equal length, read from their first token on."""
    rows, length = tokens_RT.shape
    text = PackedText(tokens_RT.flatten(), torch.full((rows,), length))
    return model.word_logits(model.qformer.decode_text(memory, text).view(rows, length, -1)[:, -1])


def _rows(memory: ImageMemory, row_R: Tensor) -> ImageMemory:
    own = [(keys[row_R], values[row_R]) for keys, values in memory.own]
    return ImageMemory(memory.feature_BVD[row_R], memory.query_BQD[row_R], memory.cross, own)


def seconds_of_cached(model: MedUnifier, memory: ImageMemory, beams: int) -> float:
    """One search over all 94 tokens."""
    cache = TextCache(model, memory, LONGEST - 1)
    constraints = Constraints(FIRST, END, LONGEST - 1, LONGEST - 2, forbidden_ids=(FIRST,))
    start = time.perf_counter()
    beam_search(cache.step, len(memory.query_BQD), constraints, beams, CPU)
    return time.perf_counter() - start


def seconds_of_recomputed(model: MedUnifier, memory: ImageMemory, beams: int, lengths: list[int]) -> float:
    """Reading texts of some lengths, scaled to the 94 reads of a search; choosing tokens is not counted."""
    rows = _rows(memory, torch.arange(len(memory.query_BQD)).repeat_interleave(beams))
    took = []
    for length in lengths:
        tokens_RT = torch.randint(5, FIRST, (len(rows.query_BQD), length))
        start = time.perf_counter()
        whole_text(model, rows, tokens_RT)
        took.append(time.perf_counter() - start)
    return statistics.mean(took) * (LONGEST - 1)


def main() -> None:
    """Print both times, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--lengths", type=int, default=6, help="text lengths that the slow side is timed at")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )
    args = parser.parse_args()
    if args.tiny:
        args.images, args.beams, args.lengths, args.rounds = 1, 2, 2, 1
    torch.set_num_threads(1 if args.tiny else THREADS)
    torch.manual_seed(0)
    recipe = load_recipe("full", [*SMALL_IMAGE, *(TINY if args.tiny else ())])
    model = MedUnifier(recipe, VOCABULARY).eval()
    torch.nn.init.normal_(model.qformer.word.weight, std=0.2)  # so that no two beams are nearly equal
    # evenly spread, centred: of 94 lengths in 6 parts the 8th, 24th, ...
    part = (LONGEST - 1) / args.lengths
    lengths = [round(part * (i + 0.5) + 0.5) for i in range(args.lengths)]
    with torch.inference_mode():
        features = torch.randn(args.images, 257, model.vit.width)
        memory = model.qformer.encode_image(features)
        short = Constraints(FIRST, END, CHECKED, CHECKED - 1, forbidden_ids=(FIRST,))
        fast = beam_search(TextCache(model, memory, CHECKED).step, args.images, short, args.beams, CPU)
        slow = beam_search(Recomputed(model, memory).step, args.images, short, args.beams, CPU)
        same = [one.tokens for one in fast] == [one.tokens for one in slow]
        cached, recomputed = [], []
        for _ in range(args.rounds):
            cached.append(seconds_of_cached(model, memory, args.beams))
            recomputed.append(seconds_of_recomputed(model, memory, args.beams, lengths))
    print(f"cached       {statistics.median(cached):8.2f} s")
    print(f"recomputed   {statistics.median(recomputed):8.2f} s, scaled from texts of {lengths} tokens")
    result = {
        "ratio": round(statistics.median(recomputed) / statistics.median(cached), 1),
        "same_texts": same,
        "same_texts_over": f"{CHECKED} tokens",
        "images": args.images,
        "beams": args.beams,
        "recomputation": f"timed at {len(lengths)} of {LONGEST - 1} lengths, scaled",
        "images_per_second": round(args.images / statistics.median(cached), 2),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))
    if not same:
        sys.exit("the two sides wrote different texts")


if __name__ == "__main__":
    main()
