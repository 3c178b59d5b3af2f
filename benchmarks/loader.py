"""Loader against bare decoding: the share of one process's PNG decoding rate that reaches the training loop.

    python benchmarks/loader.py [--images 1024] [--small 20000] [--rounds 5] [--tiny]

Bare decoding is `np.asarray(Image.open(bytes))` over the same bytes, already in memory, in one process. The
loader reads shards by offset, decodes, collates batches of 64 and passes them to the main process. Rounds of
both alternate, and medians are compared. `processor_*` compare processor time over all processes, which is
more reliable on a shared machine. Then come three epochs over many small samples, with the memory of each
process. Images are real radiographs if `../shared/data` exists, and smooth seeded noise otherwise.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.data.contract import DatasetPlugin, DrawnImage, Plan, Record
from medunifier_cli.data.loader import SplitSource, train_batches
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.prepare.prepare import Job, prepare
from medunifier_cli.recipe.schema import DataConfig, TextConfig

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "covid-chestxray" / "images"
BATCH = 64
WORDS = ["heart", "lungs", "clear", "effusion", "no", "left", "right", "opacity", "stable", "mild"]


class Stand(DatasetPlugin):
    """`n` images with texts of about 39 words."""

    name = "stand-in"
    title = "Benchmark images"
    needs_raw = False

    def __init__(self, n: int) -> None:
        self.n = n

    def plan(self, raw: Path, options: Any) -> Plan:
        return Plan(self._records(), total=self.n)

    def _records(self) -> Iterator[Record]:
        for i in range(self.n):
            rng = np.random.default_rng(i)
            text = " ".join(rng.choice(WORDS, 39))
            yield Record(f"s{i:06d}", DrawnImage(partial(picture, i)), "train", f"p{i}", "s", "drawn",
                         sections={"findings": text}, labels={"A": float(i % 2)})  # fmt: skip


def picture(i: int, size: int) -> NDArray[np.uint8]:
    """A real radiograph, flipped and shifted to be another one, or smooth noise."""
    rng = np.random.default_rng(i)
    if REAL.is_dir() and size > 64:
        files = sorted(REAL.iterdir())
        with Image.open(files[i % len(files)]) as image:
            grey = np.array(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))
        return np.roll(grey[:, ::-1] if i % 2 else grey, int(rng.integers(0, size)), axis=1)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8)).astype(np.uint8))
    smooth = np.array(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
    return (smooth + rng.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)


def shards(folder: Path, n: int, size: int) -> SplitSource:
    """Prepared shards of `n` images, opened."""
    plugin = Stand(n)
    prepare(Job(plugin, folder, folder, {}, size=size, workers=2))
    tokenizer = TextTokenizer.train([" ".join(WORDS)], 200)
    return SplitSource(
        Shards.open(folder, "train"), tokenizer, DataConfig(image_size=size), TextConfig(), plugin
    )


def decode_rate(bodies: list[bytes]) -> tuple[float, float]:
    """Images per second, and per second of processor, of one process that does nothing but decode."""
    start, before = time.perf_counter(), time.process_time()
    for body in bodies:
        np.asarray(Image.open(io.BytesIO(body)))
    return len(bodies) / (time.perf_counter() - start), len(bodies) / (time.process_time() - before)


def stream(source: SplitSource, workers: int, steps: int, batch: int = BATCH) -> Iterator[Any]:
    return train_batches(
        source, seed=0, first_step=0, steps=steps, global_batch=batch, micro_batch=0, rank=0, world=1,
        workers=workers,
    )  # fmt: skip


class Running:
    """A loader under way, so that its start is not timed; between rounds its queue is full and it waits."""

    def __init__(self, source: SplitSource, workers: int, images: int) -> None:
        self.ahead = 2 * workers  # batches that lie ready when a round begins: not this round's work
        self.count = images // BATCH
        self.parent = psutil.Process()
        self.batches = stream(source, workers, 10**9)
        next(self.batches)

    def rate(self) -> tuple[float, float]:
        """Images per second over one round, and per second of processor of all its processes."""
        for _ in range(self.ahead + 1):
            next(self.batches)
        start, before = time.perf_counter(), self.processor()
        for _ in range(self.count):
            next(self.batches)
        images = self.count * BATCH
        return images / (time.perf_counter() - start), images / (self.processor() - before)

    def processor(self) -> float:
        times = [process.cpu_times() for process in (self.parent, *self.parent.children())]
        return sum(t.user + t.system for t in times)


def speed(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    source = shards(folder, images, 224)
    bodies = [source.shards.image(i) for i in range(len(source))]
    decode: list[tuple[float, float]] = []
    loaded: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    for _ in range(rounds):
        decode.append(decode_rate(bodies))
        for workers, rates in loaded.items():
            running = Running(source, workers, images)  # one loader at a time: others would take its core
            rates.append(running.rate())
            running.batches.close()  # type: ignore[attr-defined]
            del running
    base, processor_base = (statistics.median(rate[i] for rate in decode) for i in (0, 1))
    medians = {workers: statistics.median(rate[0] for rate in rates) for workers, rates in loaded.items()}
    shares = {workers: round(rate / base, 3) for workers, rate in medians.items()}
    processor = {w: statistics.median(rate[1] for rate in rates) for w, rates in loaded.items()}
    clocked = [rate[0] for rate in decode]
    return {
        "share_of_decode": min(shares[1], shares[2]),
        "share_1": shares[1],
        "share_2": shares[2],
        "share_in_process": shares[0],
        "decode_images_per_s": round(base),
        "decode_images_per_cpu_s": round(processor_base),
        "loader_images_per_s": {str(workers): round(rate) for workers, rate in medians.items()},
        "processor_share_1": round(processor[1] / processor_base, 3),
        "processor_share_2": round(processor[2] / processor_base, 3),
        "spread_decode": round((max(clocked) - min(clocked)) / base, 3),
        "mean_bytes": round(sum(map(len, bodies)) / len(bodies)),
    }


def memory(folder: Path, samples: int) -> dict[str, Any]:
    """MiB of each process at the end of each of three epochs."""
    source = shards(folder, samples, 32)
    steps = samples // BATCH
    parent = psutil.Process()
    used: list[list[float]] = []
    for step, _ in enumerate(stream(source, 2, 3 * steps), 1):
        if (step % steps == 0 and step < 3 * steps) or step == 3 * steps - 8:
            processes = [parent, *parent.children()]
            used.append([round(process.memory_info().rss / 2**20, 1) for process in processes])
            print(f"epoch {len(used)}: RSS in MiB of parent and workers {used[-1]}", file=sys.stderr)
    growth = max(last - first for first, last in zip(used[0], used[2], strict=True))
    return {"rss_mib_by_epoch": used, "growth_mib": round(growth, 1), "small_samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )
    args = parser.parse_args()
    if args.tiny:
        args.images, args.small, args.rounds = BATCH, 10 * BATCH, 1
    with tempfile.TemporaryDirectory() as folder:
        result = speed(Path(folder) / "large", args.images, args.rounds) | memory(
            Path(folder) / "small", args.small
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
