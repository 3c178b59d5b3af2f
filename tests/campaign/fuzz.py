"""Damaged inputs for every reader: only a line of mu, a counted skip, or a good result may come out.

A batch runs in a process of its own with bounds on memory and time; the process that started it takes down
what ends it, and continues with the next input in a new one.
"""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
import unicodedata
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from tests.campaign import forked
from tests.campaign.home import World
from tests.campaign.inputs import damaged, draw_edits
from tests.campaign.record import ROOT, Outcome
from tests.campaign.targets.target import SENTINEL, Target, all_targets

BATCH = 250
"""Inputs of one batch."""
SECONDS = 5
"""CPU time that one input may take."""
SILENCE = 90.0
"""Wall time after which an input counts as hanging, on a machine that does other work."""
MEMORY = 1 << 30
"""Bytes that a batch may allocate on top of what it starts with."""
UNUSABLE = 79
"""Exit code of a batch whose undamaged files cannot be read."""
WIDTH = 300
"""A line is shorter than this, `mu: ` aside."""


def trials(count: int, seed: int) -> list[str]:
    """Batches for about `count` inputs, by the shares of the targets; each has one at least."""
    targets = all_targets()
    total = sum(target.share for target in targets.values())
    batches = []
    for name, target in targets.items():
        wanted = count * target.share / total
        size = min(BATCH, target.batch)
        batches += [
            (number, f"{name}/{min(size, max(10, math.ceil(wanted)))}")
            for number in range(math.ceil(wanted / size))
        ]
    batches.sort()  # each target's first batch comes first
    return [f"fuzz/{seed}/{number}/{rest}" for number, rest in batches]


def trial(world: World, name: str) -> Outcome:
    """One batch."""
    _, _, _, target_name, count = name.split("/")
    target, started = all_targets()[target_name], time.monotonic()
    seeds = world.work / "seeds" / target_name.replace(" ", "-")
    if not (seeds.parent / f"{seeds.name}.built").exists():
        _build(target, seeds, world)
    folder = world.scratch / f"fuzz-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    progress = mmap.mmap(-1, 8)
    found = world.scratch / f"found-{os.getpid()}.jsonl"
    found.unlink(missing_ok=True)
    start, failures = 0, []
    while start < int(count):
        work = functools.partial(
            _batch, target, seeds, folder, name, start, int(count), progress, found, world
        )
        end = _worker(work, progress)
        if not end:
            break
        at = struct.unpack("q", progress[:8])[0]
        path = random.Random(f"{name}/{at}").choice(_files(target, folder, seeds))
        kept = _keep(world, target, end, path.name, path, f"{name}, input {at}", folder)
        failures.append(f"{end} (input {at}, {kept})")
        start = at + 1
    lines = found.read_text().split("\n") if found.exists() else []
    failures += [json.loads(line) for line in lines if line]
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome("fuzz", target_name, name, int(count), failures, time.monotonic() - started)


def _build(target: Target, seeds: Path, world: World) -> None:
    made = seeds.with_name(f"{seeds.name}.{os.getpid()}")
    made.mkdir(parents=True)
    forked.in_child(lambda: target.make(made, world.home))
    try:
        made.rename(seeds)
    except OSError:  # another process was faster
        shutil.rmtree(made)
    (seeds.parent / f"{seeds.name}.built").touch()


def _worker(work: Callable[[], None], progress: mmap.mmap) -> str:
    """Run a batch in a forked process; what ended it before its end, empty for nothing."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setsid()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    last, since = b"", time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code == UNUSABLE:
                raise RuntimeError("the undamaged files cannot be read; see above")
            if code == -signal.SIGPROF:
                return f"SLOW: more than {SECONDS} s"
            return "" if code == 0 else f"CRASH: ended with {code}"
        if progress[:8] != last:
            last, since = progress[:8], time.monotonic()
        elif time.monotonic() - since > SILENCE:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"HANG: no end within {SILENCE:.0f} s"
        time.sleep(0.01)


def _batch(
    target: Target,
    seeds: Path,
    folder: Path,
    name: str,
    start: int,
    count: int,
    progress: mmap.mmap,
    found: Path,
    world: World,
) -> None:
    progress[:8] = struct.pack("q", start)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds, folder, symlinks=True)
    os.chdir(world.scratch)  # the folder itself may be made anew for each input
    os.environ.update(MU_DATA=str(folder / "data"), MU_RUNS=str(folder / "runs"))
    warnings.simplefilter("ignore")
    files = _files(target, folder, seeds)
    contents = {path: path.read_bytes() for path in files}
    edits = draw_edits(max(20, count // 3), zlib.crc32(name.encode()))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    try:
        for path in files:  # what is loaded once is not counted, and the undamaged files must be readable
            target.read(folder, path)
    except BaseException:
        traceback.print_exc()
        os._exit(UNUSABLE)
    _bound_memory()
    for number in range(start, count):
        progress[:8] = struct.pack("q", number)
        draw = random.Random(f"{name}/{number}")
        path = draw.choice(files)
        body = damaged(path, contents[path], edits[number % len(edits)], draw)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        wrong = attempt(functools.partial(target.read, folder, path), debug=draw.random() < 0.1)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if wrong:
            kept = _keep(world, target, *wrong.split(" at ", 1), path, f"{name}, input {number}", folder)
            with found.open("a") as out:
                out.write(json.dumps(f"{wrong} (input {number}, {kept})") + "\n")
        if target.fresh:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(seeds, folder, symlinks=True)
        else:
            path.write_bytes(contents[path])


def _files(target: Target, folder: Path, contents: Path) -> list[Path]:
    """What may be damaged in a copy of the valid files, in an order that no file system decides."""
    found = {path for glob in target.files for path in contents.glob(glob) if path.is_file()}
    return [folder / path.relative_to(contents) for path in sorted(found)]


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _Door(click.Group):
    """Stands for `mu`: errors leave through the same code."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        from medunifier_cli import cli

        class Door(cli.Verbs):
            def list_commands(self, ctx: click.Context) -> list[str]:
                return ["read"]

            def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
                return options["read"]  # type: ignore[no-any-return]

        return Door(name="mu", params=list(cli.mu.params))


def attempt(read: Callable[[], object], debug: bool = False) -> str:
    """What is wrong with what comes out of a reader, as `kind at place`; empty where nothing is."""
    from medunifier_cli.errors import MuError

    seen: list[BaseException] = []

    def callback() -> None:
        try:
            read()
        except BaseException as error:
            seen.append(error)
            raise

    door = _Door(read=click.Command("read", callback=callback))
    result = CliRunner().invoke(door, ["--debug", "read"] if debug else ["read"])
    if seen and not isinstance(seen[0], MuError | click.ClickException | click.exceptions.Exit):
        return f"{type(seen[0]).__name__} at {place_of(seen[0])}"
    where = place_of(seen[0]) if seen else "no error"
    if result.exception and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__} at cli"
    if SENTINEL in result.stderr:
        return f"REPORT TEXT{' with --debug' if debug else ''} at {where}"
    for line in [] if debug else result.stderr.split("\n"):
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in line):
            return f"CONTROL CHARACTERS at {where}"
        if len(line.removeprefix("mu: ")) >= WIDTH:
            return f"LONG LINE at {where}"
    silent = not any(line.startswith("mu: ") for line in result.stderr.split("\n"))
    if seen and silent and isinstance(seen[0], MuError):
        return f"NO LINE at {where}"
    return ""


def place_of(error: BaseException) -> str:
    """File and line of the innermost frame of the package or of a plugin."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if Path(f.filename).is_relative_to(ROOT)
        and "/tests/" not in f.filename
        and "/.venv/" not in f.filename
    ]
    frame = (ours or list(frames))[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{frame.lineno}"


def _keep(
    world: World, target: Target, kind: str, place: str, path: Path, note: str, folder: Path | None = None
) -> str:
    """Save an input that fails, if it is the smallest of its kind so far; the name of its folder."""
    name = "".join(c if c.isalnum() else "_" for c in f"{target.name} {kind} {place}")[:120]
    kept = world.work / "reproducers" / name
    body = path.read_bytes() if path.is_file() else b""
    old = [file for file in kept.glob("*") if file.name != "note.txt"]
    if not old or sum(file.stat().st_size for file in old) > len(body) > 0:
        kept.mkdir(parents=True, exist_ok=True)
        for file in old:
            file.unlink()
        if body:
            (kept / path.name).write_bytes(body)
        inner = path.relative_to(folder) if folder is not None else path.name
        (kept / "note.txt").write_text(f"{kind} at {place}\nfile {inner}\nrepeat with --again {note}\n")
    return name
