"""Time, memory and room of `full.yaml` on MIMIC-CXR's 243,300 images with 1, 4 and 32 cards, by prediction.

Takes rates and sizes from BENCHMARKS.md (`benchmarks/step.py`, `benchmarks/loader.py`), counts the model's
parameters on tensors without data, and writes docs/scaling.md.

    python benchmarks/run.py --only step loader && python -m experiments.scaling
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from experiments.running import ROOT, write_part
from medunifier_cli.objectives.pretraining import build_model
from medunifier_cli.recipe.load import load_recipe

IMAGES, EPOCHS, PAIRS = 243_300, 30, 64
"""Images of MIMIC-CXR, epochs of the recipe, pairs of a card in a step."""
CARDS, NODE = (1, 4, 32), 4
"""Numbers of cards that are compared, and cards of a node."""
STEPPED = {1: 1, 4: 4, 32: 4}
"""Ranks of the step in BENCHMARKS.md that stands for each number of cards. All pretended ranks hold the same
pairs, so 32 of them would choose each rank's images as negatives 32 times as often, or not at all; the mean
work of a rank does not depend on their number."""
KINDS = ("live", "cached")
CASES = tuple((ranks, kind) for ranks in sorted(set(STEPPED.values())) for kind in KINDS)
VOCABULARY = 30_523
CHECKPOINT_EVERY, KEPT = 1000, 3
"""Steps between two checkpoints, and how many there are at a time: two that are kept, one being written."""
LINK, NODES_LINK = 250e9, 50e9
"""Bytes a second between cards of a node (NVLink), and of a node's link to others (400 Gb/s)."""
BACKWARD = 0.09
"""Seconds of a backward pass, under which the exchange of gradients hides."""
CONTEXT_GIB = 2.0
"""GiB of a card that CUDA and NCCL take."""
WRITING, HASHING = 1.0e9, 1.5e9
"""Bytes a second at which a checkpoint is written, and read back and hashed."""


@dataclass(frozen=True)
class Inputs:
    """What the page is computed from, by card numbers and kinds of step where it depends on them."""

    rate: Mapping[str, float]
    """`4 live` -> pairs a second and card, by ranks of the step."""
    peak_gib: Mapping[str, float]
    """`4 live` -> most memory of tensors."""
    trained: int
    """Parameters that are trained."""
    frozen: int
    """Parameters of the image encoder, in bf16 on a card."""
    feature_bytes: int
    """Features of an image, bf16."""
    gathered_bytes: int
    """What a pair adds to the gathered embeddings, fp32."""
    decoded: float
    """PNGs of 224 x 224 that a core decodes in a second."""
    png_bytes: float
    """Bytes of one."""


SOURCES = {
    "rate": "predicted", "peak_gib": "counted", "trained": "counted", "frozen": "counted",
    "feature_bytes": "counted", "gathered_bytes": "counted", "decoded": "measured", "png_bytes": "measured",
}  # fmt: skip
"""How each input is known."""


def values_of(benchmarks: str) -> dict[str, dict[str, str]]:
    """Benchmark -> key -> cell, of BENCHMARKS.md."""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", benchmarks, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", part, flags=re.MULTILINE)
        found[part.split("\n", 1)[0]] = {key: value.strip() for key, value in rows}
    return found


def inputs(benchmarks: str) -> Inputs:
    """Read the measured and predicted ones from BENCHMARKS.md, and count the others.

    Raises:
        KeyError: a benchmark was not run.
    """
    values = values_of(benchmarks)

    def number(name: str, key: str) -> float:
        return float(values[name][key].replace(",", ""))

    recipe = load_recipe("full")
    with torch.device("meta"):
        model = build_model(recipe, VOCABULARY, load=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(tensor.numel() for _, tensor in model.vit.frozen_tensors())
    embeddings = (recipe.model.qformer.queries + 1) * recipe.objectives.embed_width

    def by_kind(key: str) -> dict[str, float]:
        return {f"{n} {kind}": number("step", f"{key}_{n}_{kind}") for n, kind in CASES}

    return Inputs(
        by_kind("predicted_samples_per_s"), by_kind("peak_gib"), trained, frozen,
        model.vit.tokens * model.vit.width * 2, embeddings * 4,
        number("loader", "decode_images_per_cpu_s"), number("loader", "mean_bytes"),
    )  # fmt: skip


def link_of(cards: int) -> float:
    """Bytes a second of the slowest link between cards."""
    return LINK if cards <= NODE else NODES_LINK


def gather_seconds(given: Inputs, cards: int, pairs: int = PAIRS) -> float:
    """Embeddings of all pairs gathered in the forward pass, and their gradients summed and scattered in the
    backward pass, which moves as much."""
    return 2 * given.gathered_bytes * cards * pairs / link_of(cards) if cards > 1 else 0.0


def gradient_seconds(given: Inputs, cards: int) -> float:
    """fp32 gradients summed over all cards, most of it while the backward pass runs."""
    return 2 * 4 * given.trained / link_of(cards) if cards > 1 else 0.0


def step_seconds(given: Inputs, cards: int, kind: str) -> float:
    """A step with what the exchanges between cards add to it."""
    hidden = max(0.0, gradient_seconds(given, cards) - BACKWARD)
    return PAIRS / given.rate[f"{STEPPED[cards]} {kind}"] + gather_seconds(given, cards) + hidden


def samples_per_s(given: Inputs, cards: int, kind: str) -> float:
    """Over all cards."""
    return cards * PAIRS / step_seconds(given, cards, kind)


def checkpoint_bytes(given: Inputs) -> int:
    """Weights and both moments of AdamW in fp32."""
    return 12 * given.trained


def checkpoint_seconds(given: Inputs) -> float:
    """Written, read back and hashed by a thread of the main rank beside the steps."""
    return checkpoint_bytes(given) / WRITING + checkpoint_bytes(given) / HASHING


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows))


def times(given: Inputs) -> str:
    """Rates and hours."""
    rows = []
    for cards in CARDS:
        for kind in KINDS:
            rate, step = samples_per_s(given, cards, kind), step_seconds(given, cards, kind)
            seconds = EPOCHS * IMAGES / rate
            rows.append([
                f"{cards}, {kind}", f"{cards * PAIRS:,}", f"{1000 * step:.0f}", f"{rate:,.0f}",
                f"{seconds / 3600:.2f}",
            ])  # fmt: skip
    heading = ("cards, encoder", "pairs of a step", "ms of a step", "pairs/s", f"hours of {EPOCHS} epochs")
    return table(heading, rows)


def memory(given: Inputs) -> str:
    """GiB of a card."""
    rows = []
    for cards in CARDS:
        buckets = 4 * given.trained / 2**30 if cards > 1 else 0.0
        cells = [
            f"{given.peak_gib[f'{STEPPED[cards]} {kind}'] + buckets + CONTEXT_GIB:.1f}" for kind in KINDS
        ]
        rows.append([str(cards), *cells])
    return table(("cards", "live, GiB", "cached, GiB"), rows)


def storage(given: Inputs) -> str:
    """GB on disks."""
    checkpoint = checkpoint_bytes(given)
    rows = [
        ["shards (PNG, and 1.5 KB of JSON and tar)", f"{IMAGES * (given.png_bytes + 1500) / 1e9:.1f}",
         "shared"],
        ["cached features", f"{IMAGES * given.feature_bytes / 1e9:.0f}", "local to each node, or its memory"],
        ["a checkpoint", f"{checkpoint / 1e9:.2f}", "shared"],
        [f"checkpoints at a time ({KEPT})", f"{KEPT * checkpoint / 1e9:.1f}", "shared"],
        ["image encoder, bf16", f"{2 * given.frozen / 1e9:.1f}", "memory of each card"],
    ]  # fmt: skip
    return table(("what", "GB", "where"), rows)


def bottlenecks(given: Inputs) -> str:
    """What cores, disks and links must do at the predicted rates."""
    rows = []
    for cards in CARDS:
        for kind in KINDS:
            rate = samples_per_s(given, cards, kind)
            node = rate * min(cards, NODE) / cards
            features = node * given.feature_bytes / 1e9 if kind == "cached" else 0.0
            rows.append([
                f"{cards}, {kind}", f"{node / given.decoded:.1f}", f"{rate * given.png_bytes / 1e6:,.0f}",
                f"{features:.2f}", f"{1000 * gather_seconds(given, cards):.1f}",
                f"{1000 * gradient_seconds(given, cards):.0f}",
                f"{checkpoint_seconds(given) / (CHECKPOINT_EVERY * step_seconds(given, cards, kind)):.1%}",
            ])  # fmt: skip
    heading = (
        "cards, encoder", "decoding cores of a node", "MB/s of shards, all nodes",
        "GB/s of features, a node", "gather, ms", "gradients, ms", "writing of checkpoints, share of time",
    )  # fmt: skip
    return table(heading, rows)


def gathers(given: Inputs) -> str:
    """The gather as the contrast grows."""
    rows = []
    for cards, pairs in ((4, 64), (32, 64), (32, 128)):
        count, queries = cards * pairs, load_recipe("full").model.qformer.queries
        milliseconds = 1000 * gather_seconds(given, cards, pairs)
        step = milliseconds / 1000 + pairs / given.rate[f"{STEPPED[cards]} live"]
        rows.append([
            f"{count:,} ({cards} x {pairs})", f"{count * given.gathered_bytes / 1e6:.1f}",
            f"{2 * pairs * queries * count * 4 / 1e6:,.0f}", f"{milliseconds:.1f}",
            f"{milliseconds / 1000 / step:.1%}",
        ])  # fmt: skip
    heading = ("pairs (cards x pairs)", "MB gathered", "MB of similarities", "ms", "share of a live step")
    return table(heading, rows)


def known(given: Inputs) -> str:
    """The inputs, and how each is known."""
    rows = []
    for name, value in asdict(given).items():
        parts = {f"{name} {case}": v for case, v in value.items()} if isinstance(value, Mapping) else {}
        rows += [[f"`{key}`", f"{v:.12g}", SOURCES[name]] for key, v in (parts or {name: value}).items()]
    return table(("input", "value", "how it is known"), rows)


def inputs_of(page_text: str) -> Inputs:
    """The inputs that a page says it was computed from.

    Raises:
        KeyError: it lacks one.
    """
    values = dict(re.findall(r"^\| `([\w ]+)` \| ([\d.e+]+) \| ", page_text, flags=re.MULTILINE))
    found: dict[str, object] = {}
    for field in fields(Inputs):
        if field.name in ("rate", "peak_gib"):
            found[field.name] = {
                f"{n} {kind}": float(values[f"{field.name} {n} {kind}"]) for n, kind in CASES
            }
        else:
            found[field.name] = (int if field.type == "int" else float)(values[field.name])
    return Inputs(**found)  # type: ignore[arg-type]


def page(given: Inputs) -> str:
    """The generated part of docs/scaling.md."""
    return "\n\n".join((
        f"**Time** (predicted). {PAIRS} pairs a card:", times(given),
        "**Memory of a card** (counted; buckets of DistributedDataParallel counted, "
        f"{CONTEXT_GIB:.0f} GiB of CUDA and NCCL assumed). With texts of typical length; `mu check` counts "
        "the longest possible ones and therefore prints more.", memory(given),
        "**Room** (counted; PNGs as measured on other radiographs):", storage(given),
        "**What must keep up** (predicted; decoding measured):", bottlenecks(given),
        "**The gather of ITC and ITM** (bytes counted, time predicted):", gathers(given),
        "**What this is computed from:**", known(given),
    ))  # fmt: skip


def main(benchmarks: Path = ROOT / "BENCHMARKS.md") -> None:
    """Write the page."""
    write_part("scaling", page(inputs(benchmarks.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
