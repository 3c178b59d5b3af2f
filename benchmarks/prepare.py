"""`mu prepare`: speed against a slow reference, memory, and restarts after ten kills.

    python benchmarks/prepare.py [--images 72] [--records 50000] [--kills 10] [--rounds 3] [--tiny]

Speed: JPEGs of 2544 x 3056 (MIMIC-CXR-JPG's commonest size, about its mean file size of 1.5 MB) to 224 x 224.
The reference processes them in one process as the paper does: it decodes each fully, as three channels,
resizes, and writes PNG files. `ratio_grey_*` compare with the same in one channel. Rounds alternate. The time
of start-up and contact sheet, measured on the first 24 images, is subtracted, since a real data set has
hundreds of thousands. `processor_*` are in processor time, which is more reliable on a shared machine.
Memory: peak of the parent process over 1,000 and over `--records` records with small files.
Kills: SIGKILL at random moments, then the same command again; all files must equal those of an undisturbed
run.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from medunifier_cli.data.contract import DatasetPlugin, FileImage, Plan, Record
from medunifier_cli.data.shards import Shards
from medunifier_cli.prepare.prepare import Job, prepare

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "covid-chestxray" / "images"
FIRST = 24
"""As many as a contact sheet shows."""
COLUMNS = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")


def large_jpegs(raw: Path, n: int, size: tuple[int, int]) -> None:
    """Distinct JPEGs, real radiographs enlarged where there are some, with the grain of a detector."""
    names = []
    for i in range(n):
        rng = np.random.default_rng(i)
        if REAL.is_dir():
            files = sorted(REAL.iterdir())
            base = Image.open(files[i * 7 % len(files)]).convert("L")
        else:
            base = Image.fromarray(rng.integers(0, 255, (30, 25)).astype(np.uint8))
        smooth = np.array(base.resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = rng.standard_normal((size[1] // 4, size[0]), np.float32) * 2.5
        picture = (smooth + np.tile(grain, (4, 1))).clip(0, 255).astype(np.uint8)
        names.append(f"{i:05d}.jpg")
        Image.fromarray(picture).save(raw / "images" / names[-1], "JPEG", quality=92)
    write_table(raw, names)


def small_pngs(raw: Path, n: int) -> None:
    """`n` names, few distinct files: links, since the reader does not care."""
    first = []
    for i in range(50):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40)).astype(np.uint8)
        first.append(raw / "images" / f"first{i}.png")
        Image.fromarray(pixels).save(first[-1])
    names = [f"{i:06d}.png" for i in range(n)]
    for i, name in enumerate(names):
        os.link(first[i % 50], raw / "images" / name)
    write_table(raw, names)


def write_table(raw: Path, names: list[str]) -> None:
    with open(raw / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i, name in enumerate(names):
            note = f"Case {i}: " + "cough and fever for three days, opacity of the left lower lobe. " * 4
            writer.writerow([i // 2, "COVID-19", "PA", "X-ray", name, note])


def made(folder: Path, fill: Any, n: int) -> Path:
    (folder / "images").mkdir(parents=True)
    fill(folder, n)
    return folder


def command(raw: Path, out: Path, workers: int, *args: str) -> list[str]:
    line = [
        sys.executable,
        "-m",
        "medunifier_cli",
        "prepare",
        "covid-chestxray",
        "-o",
        "test=0",
        "-o",
        "valid=0",
    ]
    return [*line, "--raw", str(raw), "--out", str(out), "--workers", str(workers), *args]


def timed(raw: Path, out: Path, workers: int) -> tuple[float, float]:
    """Seconds of a clock, seconds of processor over all processes."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(raw, out, workers), check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used


def reference(raw: Path, out: Path, mode: str) -> tuple[float, float]:
    """Seconds of a clock and of processor to decode wholly, resize and write, one after the other."""
    out.mkdir()
    start, before = time.perf_counter(), time.process_time()
    for path in sorted((raw / "images").iterdir()):
        with Image.open(path) as image:
            small = image.convert(mode).resize((224, 224), Image.Resampling.BILINEAR)
        small.convert("L").save(out / f"{path.stem}.png")
    return time.perf_counter() - start, time.process_time() - before


def difference(reference_folder: Path, out: Path) -> float:
    """Mean absolute difference in grey levels."""
    shards = Shards.open(out, "train")
    gaps = []
    for i in range(len(shards)):
        ours = np.array(Image.open(io.BytesIO(shards.image(i)))).astype(int)
        gaps.append(np.abs(ours - np.array(Image.open(reference_folder / f"{shards.key(i)}.png"))).mean())
    return float(np.mean(gaps))


def speed(folder: Path, n: int, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    fill = partial(large_jpegs, size=size)
    raw, few = made(folder / "large", fill, n), made(folder / "first", fill, FIRST)
    times: dict[str, list[tuple[float, float]]] = {}
    for r in range(rounds):
        for name, seconds in (
            ("rgb", reference(raw, folder / f"rgb{r}", "RGB")),
            ("grey", reference(raw, folder / f"grey{r}", "L")),
            ("start_1", timed(few, folder / f"start1-{r}", 1)),
            ("start_2", timed(few, folder / f"start2-{r}", 2)),
            ("1", timed(raw, folder / f"ours1-{r}", 1)),
            ("2", timed(raw, folder / f"ours2-{r}", 2)),
        ):
            times.setdefault(name, []).append(seconds)
        print({name: [round(s, 2) for s in seconds[-1]] for name, seconds in times.items()}, file=sys.stderr)
    clock, processor = (
        {name: statistics.median(pair[i] for pair in pairs) for name, pairs in times.items()} for i in (0, 1)
    )
    sizes = [path.stat().st_size for path in (raw / "images").iterdir()]
    return {
        "ratio_1": ratio(clock, "rgb", "1", n),
        "ratio_2": ratio(clock, "rgb", "2", n),
        "ratio_grey_1": ratio(clock, "grey", "1", n),
        "ratio_grey_2": ratio(clock, "grey", "2", n),
        "processor_ratio_1": ratio(processor, "rgb", "1", n),
        "processor_ratio_grey_1": ratio(processor, "grey", "1", n),
        "mean_difference": round(difference(folder / "rgb0", folder / "ours1-0"), 3),
        "seconds": {name: round(value, 2) for name, value in clock.items()},
        "processor_seconds": {name: round(value, 2) for name, value in processor.items()},
        "images": n,
        "mean_megabytes": round(sum(sizes) / n / 1e6, 2),
    }


def ratio(seconds: dict[str, float], theirs: str, ours: str, n: int) -> float:
    """How many times as fast per image, our start-up aside."""
    return round((seconds[theirs] / n) / ((seconds[ours] - seconds[f"start_{ours}"]) / (n - FIRST)), 2)


class Files(DatasetPlugin):
    """All images of a folder, named one after the other as the large data sets' plugins do."""

    name = "files"
    title = "Files"
    text_sections = ("notes",)

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        return Plan(self._records(raw), total=options["n"])

    def _records(self, raw: Path) -> Iterator[Record]:
        with open(raw / "metadata.csv", newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                image = FileImage(raw / "images" / row["filename"])
                split = ("train", "valid", "test")[i // 2 % 3]
                yield Record(f"k{i:06d}", image, split, row["patientid"], f"s{i}", row["filename"], "PA",
                             {"notes": row["clinical_notes"]}, {"A": float(i % 2), "B": None})  # fmt: skip


def prepare_files(raw: Path, out: Path, n: int) -> None:
    """The whole of `mu prepare` but its command line, with 2 workers."""
    prepare(Job(Files(), raw, out, {"n": n}, size=32, workers=2))


def peak(raw: Path, out: Path, n: int) -> float:
    """Largest resident memory of the parent over a run with 2 workers, in MiB."""
    line = [sys.executable, __file__, "--child", str(raw), str(out), str(n)]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    watched, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            most = max(most, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.05)
    assert process.wait() == 0
    return round(most / 2**20, 1)


def kill_test(folder: Path, raw: Path, kills: int) -> dict[str, Any]:
    """SIGKILL at moments drawn over a run's own length until it was killed so often, then to the end."""
    args = ("--size", "32", "--shard-size", "100")
    start = time.perf_counter()
    subprocess.run(command(raw, folder / "whole", 2, *args), check=True, stderr=subprocess.DEVNULL)
    length = time.perf_counter() - start
    rng, done, attempts = np.random.default_rng(0), 0, 0
    while done < kills and attempts < 20 * kills:
        attempts += 1
        process = subprocess.Popen(command(raw, folder / "killed", 2, *args), stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=float(rng.uniform(0.2, 1)) * length)
            if attempts % 2:
                (folder / "killed" / ".progress" / "train-000000.json").unlink(missing_ok=True)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
    subprocess.run(command(raw, folder / "killed", 2, *args), check=True, stderr=subprocess.DEVNULL)
    files = [{p.name: p.read_bytes() for p in (folder / name).iterdir() if p.is_file()} for name in
             ("whole", "killed")]  # fmt: skip
    return {"kills": done, "identical_after_kills": files[0] == files[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=72)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="of the measurement of speed")
    parser.add_argument("--child", nargs=3, metavar=("RAW", "OUT", "N"), help=argparse.SUPPRESS)
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="the same on tiny sizes, to see that this file runs; the numbers mean nothing",
    )
    args = parser.parse_args()
    size, few_records = (2544, 3056), 1000
    if args.tiny:
        size, args.rounds, few_records = (128, 152), 1, 110
        args.images, args.records, args.kills = FIRST + 4, 120, 1
    if args.child:
        prepare_files(Path(args.child[0]), Path(args.child[1]), int(args.child[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = speed(folder, args.images, size, args.rounds)
        few = made(folder / "few", small_pngs, few_records)
        result[f"parent_mib_{few_records}"] = peak(few, folder / "few-out", few_records)
        many = made(folder / "many", small_pngs, args.records)
        result[f"parent_mib_{args.records}"] = peak(many, folder / "many-out", args.records)
        result |= kill_test(folder, few, args.kills)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
