"""The disk is full from the n-th write on: one line, nothing torn; with room the same call ends equal."""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Callable

from tests.campaign import forked
from tests.campaign.home import BY_NAME, CASES, World
from tests.campaign.kills import finish, last_line
from tests.campaign.record import Outcome

WIDTH = 330
"""Characters of a line with `mu: ` and room for a count; a message itself has fewer than 300."""


def trials(count: int, seed: int) -> list[str]:
    """Cases in turn, so that each comes equally often."""
    names = [case.name for case in CASES]
    return [f"disk/{seed}/{number}/{names[number % len(names)]}" for number in range(count)]


def trial(world: World, name: str) -> Outcome:
    """One trial: no room from the n-th write on, one line, then room and the same command."""
    _, _, number, case_name = name.split("/", 3)
    case, draw, started = BY_NAME[case_name], random.Random(name), time.monotonic()
    calm, expected = world.calm(case)
    folder = world.copy(f"trial-d{number}", case)
    if forked.exact():
        # of several ranks the launcher, which is counted, writes hardly anything
        at = draw.randint(1, max(calm.additions, 40 if case.ranks > 1 else 1))
        ended = forked.run(case.words, folder, arm=(at, forked.FULL), tag="full")
        note = f"no room from write {at} on"
    else:
        room = int(2 ** draw.uniform(8, 20))
        ended = forked.run(case.words, folder, before=_smaller_files(room), tag="full")
        note = f"no file larger than {room} bytes"
    failures = _judge(ended)
    failures += finish(world, case, folder, expected)
    if failures:
        failures = [f"{case_name}, {note}: {'; '.join(failures)}"]
        world.keep(folder, name)
    world.remove(folder)
    return Outcome("disk", f"{case_name}: disk full", name, 1, failures, time.monotonic() - started)


def _judge(ended: forked.Ended) -> list[str]:
    if ended.code == forked.NO_ANSWER:
        return [f"no end within {forked.LIMIT:.0f} s"]
    wrong = []
    if ended.code not in (0, 1):  # 0: what could not be written was a cache
        wrong.append(f"ended with {ended.code}: {last_line(ended.output)}")
    if "Traceback" in ended.output or "unexpected" in ended.output:
        wrong.append(last_line(ended.output))
    if ended.code == 1 and not any(line.startswith("mu: ") for line in ended.output.split("\n")):
        wrong.append("not one line of mu")
    if any(len(line) > WIDTH for line in ended.output.split("\n") if line.startswith("mu: ")):
        wrong.append("a line of more than 300 characters")
    return wrong


def _smaller_files(room: int) -> Callable[[], None]:
    """Without a C compiler: a limit on the size of files, which libraries meet as a full disk."""

    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    return before
