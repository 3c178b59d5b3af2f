"""Memory and time of what is measured on a whole split, as the split grows: 4,000, 16,000, 64,000 samples.

Each part and size runs in a process of its own. Time is the processor's, which others on the machine change
little. Memory is what it holds itself at its peak, beyond what it
held before: pages of a mapped file do not count, as the system drops them when it needs the room.

- retrieval: both directions with the chance level; image embeddings mapped from a file, of `--queries` and
  `--width`, since at the paper's 32 x 256 the arithmetic alone takes hours.
- embedding: rows of 32 x 256 as a model would give them, written, verified and mapped (32 KiB a sample).
- copies: nearest of N training features of width 768 to 1,024 images.
- fid: the Frechet distance of N to N images with its interval of 100 resamples, features of width
  `--features`.

    python benchmarks/growth.py [--sizes 4000 16000 64000] [--parts retrieval ...] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (4_000, 16_000, 64_000)
STATUS = Path("/proc/self/status")


def held_mib() -> float:
    """Memory of this process that is no file."""
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Watched:
    """Processor time of a block, in all its threads, and the most memory it holds beyond that before it."""

    def __enter__(self) -> Watched:
        self.before = self.most = held_mib()
        self.done = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        self.start = time.process_time()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, held_mib())

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self.start
        self.done.set()
        self.watch.join()
        self.most = max(self.most, held_mib())


def embeddings(n: int, queries: int, width: int, seed: int = 0) -> Generator[dict[str, Any], None, None]:
    """Rows of unit norm, 64 at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, n, 64):
        rows = min(64, n - start)
        image = random.standard_normal((rows, queries, width), np.float32)
        text = random.standard_normal((rows, width), np.float32)
        yield {
            "image": image / np.sqrt(np.square(image).sum(axis=2, keepdims=True)),
            "text": text / np.sqrt(np.square(text).sum(axis=1, keepdims=True)),
        }


def retrieval(n: int, folder: Path, options: argparse.Namespace) -> Watched:
    from medunifier_cli.evaluate.retrieval.embed import Chosen
    from medunifier_cli.run.encoding import encoded_mapped
    from medunifier_cli.scores import ranking

    arrays = encoded_mapped(
        folder / "rows.h5", "random", n, lambda _: embeddings(n, options.queries, options.width), "image"
    )
    labels, numbers = np.arange(n) % 5, np.arange(n)
    with Watched() as watched:
        ranking.retrieval(Chosen(arrays["image"], numbers), arrays["text"], labels, pairs=numbers)
        ranking.chance_scores(labels, numbers, ranking.KS)
    return watched


def embedding(n: int, folder: Path, options: argparse.Namespace) -> Watched:
    from medunifier_cli.run.encoding import encoded_mapped

    queries, width = (options.queries, options.width) if options.tiny else (32, 256)
    with Watched() as watched:
        encoded_mapped(folder / "rows.h5", "random", n, lambda _: embeddings(n, queries, width), "image")
    return watched


def copies(n: int, folder: Path, options: argparse.Namespace) -> Watched:
    from medunifier_cli.scores.privacy import nearest

    random = np.random.default_rng(0)
    width = options.width if options.tiny else 768
    train = random.standard_normal((n, width), np.float32)
    query = random.standard_normal((min(1024, n), width), np.float32)
    with Watched() as watched:
        nearest(query, train, 10)
    return watched


def fid(n: int, folder: Path, options: argparse.Namespace) -> Watched:
    from medunifier_cli.scores.image import frechet_interval

    random = np.random.default_rng(0)
    real, fake = (random.standard_normal((n, options.features), np.float32) for _ in range(2))
    with Watched() as watched:
        frechet_interval(real, fake)
    return watched


PARTS = {"retrieval": retrieval, "embedding": embedding, "copies": copies, "fid": fid}


def measure(part: str, n: int, options: argparse.Namespace) -> dict[str, float]:
    """One part at one size, in another process."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--one", part, "--sizes", str(n),
        "--queries", str(options.queries), "--width", str(options.width),
        "--features", str(options.features),
        *(["--tiny"] if options.tiny else []),
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--queries", type=int, default=2, help="of an image, in retrieval")
    parser.add_argument("--width", type=int, default=32, help="of the embeddings, in retrieval")
    parser.add_argument("--features", type=int, default=256, help="width of the features of FID")
    parser.add_argument("--one", choices=list(PARTS), help="measure this part in this process")
    parser.add_argument(
        "--tiny", action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )  # fmt: skip
    options = parser.parse_args()
    if options.tiny and not options.one:
        options.sizes, options.width, options.features = [40, 80], 8, 8
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            watched = PARTS[options.one](options.sizes[0], Path(folder), options)
        mib = round(watched.most - watched.before, 1)
        print(json.dumps({"mib": mib, "cpu_seconds": round(watched.seconds, 2)}))
        return

    result: dict[str, Any] = {
        "benchmark": "growth", "sizes": options.sizes,
        "retrieval_embedding": [options.queries, options.width],
        "fid_width": options.features,
    }  # fmt: skip
    for part in options.parts:
        found = [measure(part, n, options) for n in options.sizes]
        result |= {f"{part}_{name}": [one[name] for one in found] for name in ("mib", "cpu_seconds")}
        shown = ", ".join(
            f"{n:,}: {one['mib']:.0f} MiB, {one['cpu_seconds']:.1f} CPU s"
            for n, one in zip(options.sizes, found, strict=True)
        )
        print(f"{part}: {shown}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
