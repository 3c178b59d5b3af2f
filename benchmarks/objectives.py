"""ITC, ITM and ITG at the paper's sizes, forward and backward, against the way the paper writes them.

The plain side (`tests/reference`) computes each objective as its own full pass over queries and text: text
padded to 95, the image's keys and values recomputed, vocabulary logits at every position. Both sides use the
same kernels, weights, features and random numbers, and must give the same losses and gradients. Text lengths
are those of Open-i reports: the median report of each eighth, so that they do not depend on a random choice.

    python benchmarks/objectives.py [--repeats 5] [--threads 2] [--batch 8] [--tiny]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import sys
import tarfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from medunifier_cli.data.contract import Batch, PackedText  # noqa: E402
from medunifier_cli.data.texts.tokenizer import TextTokenizer  # noqa: E402
from medunifier_cli.distributed import draws  # noqa: E402
from medunifier_cli.model.medunifier import MedUnifier  # noqa: E402
from medunifier_cli.objectives.pretraining import PretrainingLoss  # noqa: E402
from medunifier_cli.pretended.typical import LENGTHS  # noqa: E402
from medunifier_cli.recipe.load import load_recipe  # noqa: E402
from tests.reference.plain_encoder import plain_weights  # noqa: E402
from tests.reference.plain_objectives import PaddedTexts, PlainObjectives  # noqa: E402

VOCABULARY, CLS, SEP = 30523, 2, 3  # CXR-BERT's words and [DEC], which is the last
REPORTS = ROOT.parent / "shared/data/open-i/NLMCXR_reports.tgz"
TOLERANCE = 1e-4
NO_VIT = (
    "model.vit.name=vit_tiny_patch16_224", "model.vit.weights=random", "model.vit.patch_size=14",
    "model.vit.width=1408", "model.vit.heads=16", "model.vit.depth=1", "model.vit.drop_last_block=false",
)  # fmt: skip
"""Builds a ViT of the right output size in no time; its features are given."""
SAME_NUMBERS = ("model.qformer.weights=random", "model.qformer.dropout=0.0")


class Sizes(NamedTuple):
    """What is measured: the paper's sizes, or others with the same code."""

    vocabulary: int = VOCABULARY
    image: int = 224
    overrides: tuple[str, ...] = ()


TINY = Sizes(
    300, 64,
    (
        "data.image_size=64", "model.vit.patch_size=8", "model.vit.width=48", "model.vit.heads=4",
        "model.qformer.layers=2", "model.qformer.width=64", "model.qformer.heads=4",
        "model.qformer.ffn_width=64", "model.qformer.queries=16", "model.qformer.init_std=0.1",
        "model.generator.base_width=32", "model.generator.residual_width=16", "model.generator.code_width=32",
    ),
)  # fmt: skip
"""With `--tiny`: to see that this file runs. With a smaller `init_std` all embeddings of so narrow a model
are alike, and rounding is all that is left of ITC's gradient."""


class Given(nn.Module):
    """In place of the frozen ViT."""

    def __init__(self, features_BVD: Tensor) -> None:
        super().__init__()
        self.features = features_BVD

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.features


def all_lengths(vocabulary: int) -> tuple[list[int], str]:
    """Token counts of the reports, sorted, and where they come from."""
    if vocabulary != VOCABULARY or not REPORTS.is_file():
        places = np.linspace(0, len(LENGTHS) - 1, 4001)
        return np.interp(places, range(len(LENGTHS)), LENGTHS).round().astype(int).tolist(), "stand-in"
    texts = []
    with tarfile.open(REPORTS) as tar:
        for member in tar:
            if member.name.endswith(".xml"):
                file = tar.extractfile(member)
                assert file is not None
                sections = {
                    e.get("Label"): e.text or "" for e in ET.fromstring(file.read()).iter("AbstractText")
                }
                text = f"{sections.get('FINDINGS', '')} {sections.get('IMPRESSION', '')}".strip()
                texts += [text] if text else []
    tokens = TextTokenizer.train(texts, VOCABULARY - 1).encode_many(texts, 95)
    return sorted(len(ids) for ids in tokens), "Open-i reports"


def make_batch(size: int, sizes: Sizes) -> tuple[Batch, str]:
    """Pairs whose text lengths are spread as those of the reports, the words drawn."""
    every, source = all_lengths(sizes.vocabulary)
    rng = np.random.default_rng(0)
    lengths = [every[int((i + 0.5) * len(every) / size)] for i in rng.permutation(size)]
    ids = np.concatenate([[CLS, *rng.integers(5, sizes.vocabulary - 1, n - 2), SEP] for n in lengths])
    text = PackedText(torch.from_numpy(ids), torch.tensor(lengths))
    image = torch.from_numpy(rng.integers(0, 256, (size, 1, sizes.image, sizes.image), dtype=np.uint8))
    numbers = torch.arange(size)
    batch = Batch([str(i) for i in range(size)], image, text, numbers + 1000, numbers * 0, numbers)
    return batch, f"{source}: {lengths}, mean {np.mean(lengths):.1f} (of all {np.mean(every):.1f})"


def build(batch: Batch, sizes: Sizes, *overrides: str) -> PretrainingLoss:
    """full.yaml with a given image encoder, random weights and no dropout."""
    recipe = load_recipe("full", [*NO_VIT, *SAME_NUMBERS, *sizes.overrides, *overrides])
    torch.manual_seed(0)
    model = MedUnifier(recipe, sizes.vocabulary)
    tokens, width = model.vit.tokens, model.vit.width
    model.vit = Given(torch.randn(len(batch.keys), tokens, width))
    return PretrainingLoss(model, sizes.vocabulary - 1).train()


class Sides:
    """Ours and the plain side on the same weights."""

    def __init__(self, batch: Batch, sizes: Sizes, cross_attention_every: int) -> None:
        self.batch = batch
        every = f"model.qformer.cross_attention_every={cross_attention_every}"
        self.objectives = build(batch, sizes, "objectives.tig=0.0", every)
        model = self.objectives.model
        self.leaves = {
            name: tensor.detach().clone().requires_grad_()
            for name, tensor in plain_weights(dict(model.named_parameters())).items()
        }
        self.plain = PlainObjectives(self.leaves, model.recipe.model.qformer.heads, sizes.vocabulary - 1)
        lengths = batch.text.lengths_B.tolist()
        grid = torch.zeros(len(lengths), model.recipe.text.max_tokens, dtype=torch.int64)
        for row, ids in enumerate(batch.text.ids_N.split(lengths)):
            grid[row, : len(ids)] = ids
        self.text = PaddedTexts(grid, lengths, batch.digest_B.tolist())
        places = batch.position_B.tolist()
        self.uniform = [
            draws.uniform(model.recipe.train.seed, purpose, places).tolist()
            for purpose in (draws.NEGATIVE_TEXT, draws.NEGATIVE_IMAGE)
        ]

    def ours(self) -> dict[str, Tensor]:
        """Forward and backward."""
        self.objectives.zero_grad(set_to_none=True)
        losses, _ = self.objectives(self.batch)
        losses["total"].backward()
        return {name: losses[name].detach() for name in ("itc", "itm", "itg")}

    def theirs(self) -> dict[str, Tensor]:
        """Forward and backward."""
        for leaf in self.leaves.values():
            leaf.grad = None
        vit = self.objectives.model.vit
        losses = self.plain(vit(self.batch.image_B1HW), self.text, *self.uniform)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def differences(self) -> tuple[float, float, dict[str, float]]:
        """Of losses, and of gradients relative to the largest entry of each matrix's gradient; and the
        floating point operations of both sides."""
        kept: dict[str, dict[str, Tensor]] = {}
        work = {
            "ours": flops(lambda: kept.update(ours=self.ours())),
            "plain": flops(lambda: kept.update(plain=self.theirs())),
        }
        ours, theirs = kept["ours"], kept["plain"]
        loss = max(float((ours[name] - theirs[name]).abs()) for name in theirs)
        named = self.objectives.model.named_parameters()
        gradients = plain_weights({name: p.grad for name, p in named if p.grad is not None})
        assert gradients.keys() == {name for name, leaf in self.leaves.items() if leaf.grad is not None}
        worst = 0.0
        for name, ours_grad in gradients.items():
            grad = self.leaves[name].grad
            assert grad is not None
            # a key's bias has no gradient but rounding: softmax does not see it
            scale = max(float(grad.abs().max()), 1e-3)
            worst = max(worst, float((ours_grad - grad).abs().max()) / scale)
        return loss, worst, work


def flops(call: Callable[[], Any]) -> float:
    """Floating point operations of matrix products and attention, multiply and add as two."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        call()
    return float(counter.get_total_flops())


def peak_mib(call: Callable[[], Any]) -> float:
    """Largest resident size while `call` runs; where Linux cannot forget earlier peaks, of the process."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        call()
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        call()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def interleave(
    calls: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each call, one after the other in every round, and MiB of memory at its peak."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    memory = dict.fromkeys(calls, 0.0)

    def timed(name: str) -> None:
        start = time.perf_counter()
        calls[name]()
        seconds[name].append(time.perf_counter() - start)

    for number in range(repeats):
        for name in calls:
            memory[name] = max(memory[name], peak_mib(partial(timed, name)))
        print(f"round {number + 1}:", {name: round(s[-1], 2) for name, s in seconds.items()}, flush=True)
    return seconds, memory


def compare(batch: Batch, sizes: Sizes, every: int, repeats: int) -> dict[str, Any]:
    """Both sides with cross-attention in every `every`-th block."""
    sides = Sides(batch, sizes, every)
    loss, gradient, work = sides.differences()
    print(f"cross-attention every {every}: losses differ by {loss:.1e}, gradients by {gradient:.1e}")
    assert loss < TOLERANCE, "losses differ"
    assert gradient < TOLERANCE, "gradients differ"
    print(f"TFLOP: ours {work['ours'] / 1e12:.3f}, plain {work['plain'] / 1e12:.3f}")
    seconds, memory = interleave({"ours": sides.ours, "plain": sides.theirs}, repeats)
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    return {
        "ratio": round(median(seconds["plain"]) / median(seconds["ours"]), 3),
        "flop_ratio": round(work["plain"] / work["ours"], 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "median_s": {name: round(median(s), 3) for name, s in seconds.items()},
        "tflop": {name: round(f / 1e12, 3) for name, f in work.items()},
        "peak_mib": {name: round(mib) for name, mib in memory.items()},
        "largest_difference": {"loss": loss, "gradient": gradient},
    }


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
    sizes = TINY if options.tiny else Sizes()
    torch.set_num_threads(options.threads)
    batch, lengths = make_batch(options.batch, sizes)
    print(lengths)
    each = compare(batch, sizes, 1, options.repeats)
    gc.collect()
    alternate = compare(batch, sizes, 2, options.repeats)
    result = {"benchmark": "objectives", "batch": options.batch, "threads": options.threads}
    result |= each | {f"{name}_alternate": value for name, value in alternate.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
