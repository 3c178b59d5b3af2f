"""TIG at the paper's sizes, forward and backward, compared with ITC, ITM and ITG together.

Both are timed from the image features on. TIG is timed without the passes of the image-text encoder that it
needs, because the other three objectives have already made them (f_q and f_t_cls are given, and their
gradients are computed). `share_alone` includes these passes, as in a run of TIG alone.

    python benchmarks/tig.py [--repeats 5] [--threads 2] [--batch 8] [--tiny]
"""

from __future__ import annotations

import argparse
import json
from statistics import median
from typing import Any

import torch
from objectives import TINY, Sizes, build, flops, interleave, make_batch

from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.objectives.tig import tig_loss

ALONE = ("objectives.itc=0.0", "objectives.itm=0.0", "objectives.itg=0.0")


class Parts:
    """The objectives on one batch, together and apart."""

    def __init__(self, size: int, sizes: Sizes) -> None:
        self.batch, self.lengths = make_batch(size, sizes)
        self.three = build(self.batch, sizes, "objectives.tig=0.0")
        self.alone = build(self.batch, sizes, *ALONE)
        self.image = pixels(self.batch.image_B1HW)
        model = self.alone.model
        with torch.no_grad():
            memory = model.encode_image(self.image)
            text = model.encode_text(self.batch.text)
        self.given = [x.clone().requires_grad_() for x in (memory.query_BQD, memory.patch_BVD, text)]

    def texts(self) -> None:
        """ITC + ITM + ITG."""
        self._whole(self.three)

    def tig_alone(self) -> None:
        """TIG with its passes over image and text."""
        self._whole(self.alone)

    def tig(self) -> None:
        """Adapters, quantisers and decoder."""
        model = self.alone.model
        model.generator.zero_grad(set_to_none=True)
        for x in self.given:
            x.grad = None
        beta = model.recipe.model.generator.beta
        tig_loss(self.image, model.generator(*self.given), beta).loss.backward()

    def _whole(self, objectives: PretrainingLoss) -> None:
        objectives.zero_grad(set_to_none=True)
        objectives(self.batch)[0]["total"].backward()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )
    options = parser.parse_args()
    if options.tiny:
        options.repeats, options.batch, options.threads = 1, 4, 1
    torch.set_num_threads(options.threads)
    parts = Parts(options.batch, TINY if options.tiny else Sizes())
    print(parts.lengths)
    generator = parts.alone.model.generator
    millions = {
        name: round(sum(p.numel() for p in part.parameters()) / 1e6, 2)
        for name, part in (("decoder", generator.decoder), ("generator", generator))
    }
    print("million parameters:", millions)
    calls: dict[str, Any] = {"three": parts.texts, "tig": parts.tig, "tig_alone": parts.tig_alone}
    work = {name: flops(call) for name, call in calls.items()}
    print("TFLOP:", {name: round(f / 1e12, 3) for name, f in work.items()})
    seconds, memory = interleave(calls, options.repeats)
    medians = {name: median(s) for name, s in seconds.items()}
    shares = [tig / three for tig, three in zip(seconds["tig"], seconds["three"], strict=True)]
    result = {
        "benchmark": "tig", "batch": options.batch, "threads": options.threads,
        "share_of_objectives": round(medians["tig"] / medians["three"], 3),
        "share_alone": round(medians["tig_alone"] / medians["three"], 3),
        "flop_share": round(work["tig"] / work["three"], 3),
        "spread": [round(min(shares), 3), round(max(shares), 3)],
        "median_s": {name: round(s, 3) for name, s in medians.items()},
        "decoder_million_parameters": millions["decoder"],
        "peak_mib": {name: round(mib) for name, mib in memory.items()},
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
