"""SIGKILL at any moment, in any write, twice in a row: the same command ends bit-equal to one left alone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from tests.campaign import forked
from tests.campaign.home import BY_NAME, Case, World
from tests.campaign.record import Outcome
from tests.campaign.state import differences, state_of

SHARES = {
    "prepare": 6,
    "prepare, 2 workers": 3,
    "pretrain": 10,
    "pretrain, 1 loader worker": 3,
    "pretrain, 2 ranks": 8,
    "fit-prior": 7,
    "finetune": 6,
    "finetune, 2 ranks": 3,
    "finetune, frozen": 6,
    "synthesize": 7,
    "report": 4,
    "retrieve": 4,
    "zeroshot": 4,
}
"""How often each case comes."""
MOMENTS = ("in a write", "at random", "in start-up")


def trials(count: int, seed: int) -> list[str]:
    """Names of the trials, the same for the same seed."""
    names = random.Random(f"kills {seed}").choices(list(SHARES), list(SHARES.values()), k=count)
    # each case at least once, however few trials there are
    for number, case in enumerate(list(SHARES)[:count]):
        names[number] = case
    return [f"kills/{seed}/{number}/{case}" for number, case in enumerate(names)]


def trial(world: World, name: str) -> Outcome:
    """One trial: kill, perhaps kill again, finish, compare."""
    case = BY_NAME[name.split("/", 3)[3]]
    draw = random.Random(name)
    started = time.monotonic()
    calm, expected = world.calm(case)
    folder = world.copy(f"trial-{name.split('/')[2]}", case)
    kills, notes = 0, []
    fixed = name.split("/")[2].partition("+")[2]
    for turn in range(int(fixed) if fixed else draw.choice((1, 1, 1, 2, 2, 3))):
        how = draw.choices(MOMENTS, (5, 4, 1))[0]
        killed, note = kill(case, folder, draw, calm, how, f"kill{turn}")
        kills += killed
        notes.append(note)
    failures = finish(world, case, folder, expected)
    if failures:
        failures = [f"{case.name} ({', '.join(notes)}): {failures[0]}", *failures[1:]]
        world.keep(folder, name)
    world.remove(folder)
    return Outcome("kills", f"{case.name}: killed", name, kills, failures[:1], time.monotonic() - started)


def kill(
    case: Case, folder: Path, draw: random.Random, calm: forked.Ended, how: str, tag: str
) -> tuple[int, str]:
    """Start the call and kill it; 1 if it still ran, and what was done in words."""
    whom = draw.choice(("group", "one rank", "launcher")) if case.ranks > 1 else "group"
    if how == "in a write" and forked.exact():
        # of several ranks the main one writes nearly everything, and it counts for itself
        at = draw.randint(1, max(calm.changes, 40 if case.ranks > 1 else 1))
        action = forked.KILL_SELF if whom == "one rank" else forked.KILL_GROUP
        call = forked.start(case.words, folder, arm=(at, action), tag=tag)
        ended = call.wait()
        note = f"{whom} in change {at}: {ended.code}"
    else:
        share = draw.uniform(0.0, 0.1 if how == "in start-up" else 1.0)
        call = forked.start(case.words, folder, tag=tag)
        time.sleep(share * calm.seconds)
        if whom == "one rank":
            ranks = forked.ranks_of(call)
            if ranks:
                _kill(draw.choice(ranks))
        else:
            call.signal(signal.SIGKILL, group=whom == "group")
        ended = call.wait()
        note = f"{whom} after {share:.3f} of the time: {ended.code}"
    # a launcher's orphans end by themselves, or the next call finds the run still locked
    left = not forked.gone(call.pid, 0.0 if whom == "launcher" else 20.0)
    killed = ended.code == -signal.SIGKILL or (whom == "one rank" and ended.code not in (0, 75))
    return int(killed), note + (", ranks still there" if left else "")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def finish(world: World, case: Case, folder: Path, expected: dict[str, str], tries: int = 1) -> list[str]:
    """Run the same command to its end; what is wrong with what it left."""
    for turn in range(tries):
        ended = forked.run(case.words, folder, tag=f"end{turn}")
        if ended.code == 0:
            break
    if ended.code == forked.NO_ANSWER:
        return [f"the same command did not end within {forked.LIMIT:.0f} s"]
    if ended.code:
        return [f"the same command ended with {ended.code}: {last_line(ended.output)}"]
    unequal = differences(expected, state_of(folder))
    return [f"not equal: {'; '.join(unequal[:6])}{' ...' if len(unequal) > 6 else ''}"] if unequal else []


def last_line(output: str) -> str:
    """The last line that `mu` printed about an error."""
    lines = [line for line in output.split("\n") if line.strip()]
    ours = [line for line in lines if line.startswith("mu: ")]
    return (ours or lines or ["no word"])[-1][:300]
