"""Deals the trials of a campaign to processes, and takes down what comes of each."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence

from tests.campaign.home import World
from tests.campaign.record import Book, Outcome


def run(
    given: argparse.Namespace, book: Book, parts: Sequence[str], tries: Mapping[str, int], deadline: float
) -> None:
    """All trials of these parts that are not in the book yet, until the deadline."""
    world = World(given.work)
    try:
        if given.again:
            parts, names = (given.again.split("/")[0],), [given.again]
        else:
            names = []
            for part in parts:
                module = importlib.import_module(f"tests.campaign.{part}")
                names += module.trials(given.tries or tries[part], given.seed)
            names = [name for name in names if given.only in name and name not in book.done]
        say(f"{len(names):,} trials; {len(book.done):,} are done already")
        deal(world, book, names, given.jobs, deadline)
    finally:
        world.close()


def deal(world: World, book: Book, names: Sequence[str], jobs: int, deadline: float) -> None:
    """Start `jobs` processes, each of which does every `jobs`-th trial."""
    children = []
    for job in range(jobs):
        pid = os.fork()
        if not pid:
            try:
                for number, name in enumerate(names[job::jobs]):
                    if time.monotonic() > deadline:
                        break
                    one(world, book, name, f"{number * jobs + job + 1}/{len(names)}")
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(0)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)


def one(world: World, book: Book, name: str, place: str) -> None:
    """One trial; a fault of the campaign itself counts as a failure too, or nobody would see it."""
    module = importlib.import_module(f"tests.campaign.{name.split('/')[0]}")
    try:
        outcome = module.trial(world, name)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"the campaign failed: {type(error).__name__}: {error} ({where.name}:{where.lineno})"
        outcome = Outcome(name.split("/")[0], "the campaign itself", name, 1, [text[:1500]])
    book.add(outcome)
    mark = "FAILED " + "; ".join(outcome.failures)[:300] if outcome.failures else "ok"
    say(f"{place} {outcome.trial} {outcome.seconds:.1f} s {mark}")


def say(line: str) -> None:
    print(line, flush=True)
