"""Deals the trials of a campaign to processes, and takes down what comes of each."""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping, Sequence

from tests.campaign.home import World
from tests.campaign.record import Book, Outcome

SHORT = (
    "kills/0/0+2/prepare",
    "kills/0/1+2/pretrain",
    "kills/0/2+2/pretrain, 2 ranks",
    "kills/0/3+2/fit-prior",
    "kills/0/4+2/finetune, frozen",
    "kills/0/5+2/synthesize",
    "kills/0/6+2/zeroshot",
    "signals/0/0/pretrain/building the model/TERM",
    "signals/0/1/pretrain, 2 ranks/training/INT",
    "signals/0/2/fit-prior/encoding/USR1",
    "disk/0/0/pretrain",
    "disk/0/1/synthesize",
    "fuzz/0/0/recipes/60",
    "fuzz/0/0/recipe overrides/80",
    "fuzz/0/0/prompts, requests and key lists/400",
    "fuzz/0/0/tokenizer/80",
    "fuzz/0/0/manifest, index and shards/50",
    "fuzz/0/0/shards without manifest/80",
    "fuzz/0/0/download of open-i, tgz/40",
    "fuzz/0/0/download of mimic-cxr/25",
    "fuzz/0/0/images and DICOM/320",
    "fuzz/0/0/reports and outputs (JSON lines)/25",
    "fuzz/0/0/samples/25",
    "fuzz/0/0/recipe, log, provenance and results of a run/10",
    "fuzz/0/0/caches/5",
)
"""The minute of `make test`; `+3` after the number of a trial are so many kills in a row."""


def run(
    given: argparse.Namespace, book: Book, parts: Sequence[str], tries: Mapping[str, int], deadline: float
) -> None:
    """All trials of these parts that are not in the book yet, until the deadline."""
    world = World(given.work, checked=not given.short)
    try:
        if given.again:
            names = [given.again.partition(", input")[0]]
        elif given.short:
            names = [name for name in SHORT if given.only in name and name not in book.done]
        else:
            names = []
            for part in parts:
                module = importlib.import_module(f"tests.campaign.{part}")
                names += module.trials(given.tries or tries[part], given.seed)
            names = [name for name in names if given.only in name and name not in book.done]
        say(f"{len(names):,} trials; {len(book.done):,} are done already")
        deal(world, book, names, given.jobs, deadline, recorded=not given.again)
    finally:
        world.close()


def deal(
    world: World, book: Book, names: Sequence[str], jobs: int, deadline: float, recorded: bool = True
) -> None:
    """Start `jobs` processes, each of which does every `jobs`-th trial."""
    children = []
    for job in range(jobs):
        pid = os.fork()
        if not pid:
            try:
                for number, name in enumerate(names[job::jobs]):
                    if time.monotonic() > deadline:
                        break
                    one(world, book, name, f"{number * jobs + job + 1}/{len(names)}", recorded)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def one(world: World, book: Book, name: str, place: str, recorded: bool = True) -> None:
    """One trial; a fault of the campaign itself counts as a failure too, or nobody would see it."""
    module = importlib.import_module(f"tests.campaign.{name.split('/')[0]}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        outcome = module.trial(world, name)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"the campaign failed: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
        outcome = Outcome(name.split("/")[0], "the campaign itself", name, 1, [text[:1500]])
    if recorded:
        book.add(outcome)
    mark = "FAILED " + "; ".join(outcome.failures)[:300] if outcome.failures else "ok"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    say(f"{place} {outcome.trial} {outcome.seconds:.1f} s, {used:.1f} s of a core: {mark}")


def say(line: str) -> None:
    print(line, flush=True)
