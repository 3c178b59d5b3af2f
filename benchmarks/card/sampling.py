"""New images from random priors of the paper's sizes and full.yaml's decoder, as by `mu synthesize`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from objectives import NO_VIT, SAME_NUMBERS, TINY

from medunifier_cli.evaluate.codes import to_grey
from medunifier_cli.evaluate.synthesis.synthesis import DEFAULT_BATCH
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.sampling import Inputs, sample
from medunifier_cli.prior.shape import PriorShape
from medunifier_cli.recipe.load import load_recipe

SMALL = PriorShape(channels=16, blocks=1, layers=1, top_layers=1)


def seconds(device: torch.device, images: int, tiny: bool) -> dict[str, Any]:
    """Seconds for the codes and for decoding them one by one, the first batch of each left out.

    Args:
        images: that are timed.
    """
    sizes = TINY.overrides if tiny else ()
    torch.manual_seed(0)
    with device:
        model = MedUnifier(load_recipe("full", [*NO_VIT, *SAME_NUMBERS, *sizes]), 300, load=False).eval()
        shape = SMALL if tiny else PriorShape()
        top = PixelSnail(shape).eval()
        bottom = PixelSnail(replace(shape, attention=False, top_codes=512)).eval()
    generator = model.generator
    batch = DEFAULT_BATCH.get(device.type, 64)

    def codes(numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
        small = sample(top, (generator.top, generator.top), numbers, Draws(0))
        return small, sample(bottom, (generator.grid, generator.grid), numbers, Draws(0), Inputs(None, small))

    def decode(small: torch.Tensor, large: torch.Tensor) -> None:
        for row in range(len(small)):
            with measuring():
                to_grey(generator.from_codes(small[row, None].to(device), large[row, None].to(device)))

    decode(*codes(range(min(8, images))))  # kernels are chosen and loaded here
    coding = decoding = 0.0
    for start in range(0, images, batch):
        begun = time.perf_counter()
        both = codes(range(start, min(start + batch, images)))
        coded = time.perf_counter()
        decode(*both)
        coding, decoding = coding + coded - begun, decoding + time.perf_counter() - coded
    return {
        "sampled_images": images, "seconds_of_codes": round(coding, 2),
        "seconds_of_decoding": round(decoding, 2),
    }  # fmt: skip
