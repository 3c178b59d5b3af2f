"""Several ranks: groups that a launcher made, ranks that die, hang or disagree, and jobs of a scheduler."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.campaign import forked
from tests.campaign.home import BY_NAME, LOOP, PRETRAIN, PRIORS, Case, World, options, tune
from tests.campaign.jobs import job
from tests.campaign.kills import finish, last_line
from tests.campaign.record import Outcome
from tests.campaign.state import differences, state_of

END_LIMIT = 90.0
"""Seconds within which the other ranks end after one has died; generous, for a busy machine."""
ALONE = {
    "pretrain": ["pretrain", PRETRAIN, "--name", "new", *options(*LOOP)],
    "fit-prior": ["fit-prior", PRIORS, "--run", "base", "--name", "new", *options(*LOOP)],
    "finetune": tune("finetune-demo", "new"),
    "finetune, frozen": tune("probe-demo", "new"),
}
"""What each process of a joined group runs."""


def trials(count: int, seed: int) -> list[str]:
    """Every kind of group in turn."""
    names = list(KINDS)
    return [f"groups/{seed}/{number}/{names[number % len(names)]}" for number in range(count)]


def trial(world: World, name: str) -> Outcome:
    """One trial of a kind."""
    _, _, number, kind = name.split("/", 3)
    started = time.monotonic()
    folder = world.copy(f"trial-g{number}", BY_NAME["pretrain"])
    failures = KINDS[kind](world, folder, random.Random(name))
    if failures:
        failures = [f"{kind}: {'; '.join(failures)}"]
        world.keep(folder, name)
    world.remove(folder)
    return Outcome("groups", kind, name, 1, failures, time.monotonic() - started)


def slurm(rank: int, port: int) -> dict[str, str]:
    """The variables that `srun --ntasks=2` sets."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def torchrun(rank: int, port: int) -> dict[str, str]:
    """The variables that `torchrun --nproc-per-node 2` sets."""
    return {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


Variables = Callable[[int, int], Mapping[str, str]]


def start_pair(
    folder: Path, words: list[str], variables: Variables, second: list[str] | None = None
) -> list[forked.Call]:
    """Two processes that form a group; `second` is the command of rank 1 where it differs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        forked.start(rank_words, folder, env=variables(rank, port), tag=f"rank{rank}")
        for rank, rank_words in enumerate((words, second or words))
    ]


def joined(verb: str, variables: Variables) -> Callable[..., list[str]]:
    """A joined group runs to its end, and equals what `--num-processes 2` makes."""

    def kind(world: World, folder: Path, draw: random.Random) -> list[str]:
        calls = start_pair(folder, ALONE[verb], variables)
        wrong = _ends(calls, (0,))
        if not wrong:
            case = Case(f"{verb}, 2 ranks", [*ALONE[verb], "--num-processes", "2"], ranks=2)
            unequal = differences(world.calm(case)[1], state_of(folder))
            wrong += [f"not equal: {'; '.join(unequal[:5])}"] if unequal else []
        return wrong

    return kind


def joined_rank_killed(world: World, folder: Path, draw: random.Random) -> list[str]:
    """The other rank of a joined group ends, with a line; the group started again ends equal."""
    calm, expected = world.calm(BY_NAME["pretrain, 2 ranks"])
    calls = start_pair(folder, ALONE["pretrain"], slurm)
    time.sleep(draw.uniform(0.2, 0.9) * calm.seconds)
    dead, other = draw.sample(calls, 2)
    if dead.poll() is not None or other.poll() is not None:
        return _ends(calls, (0,))
    dead.signal(signal.SIGKILL)
    dead.wait()
    ended = other.wait(END_LIMIT)
    wrong = []
    if ended.code == forked.NO_ANSWER:
        wrong.append(f"the other rank waited {END_LIMIT:.0f} s and more")
    elif ended.code != 1 or "unexpected" in ended.output or "Traceback" in ended.output:
        wrong.append(f"the other rank ended with {ended.code}: {last_line(ended.output)}")
    again = _ends(start_pair(folder, ALONE["pretrain"], slurm), (0,))
    unequal = differences(expected, state_of(folder))
    return wrong + [f"again: {line}" for line in again] + ([f"not equal: {unequal[:4]}"] if unequal else [])


def rank_killed(world: World, folder: Path, draw: random.Random) -> list[str]:
    """One line names the rank and the signal; the same command ends equal."""
    case = BY_NAME["pretrain, 2 ranks"]
    calm, expected = world.calm(case)
    call = forked.start(case.words, folder, tag="killed")
    time.sleep(draw.uniform(0.2, 0.9) * calm.seconds)
    ranks = forked.ranks_of(call)
    hit = bool(ranks)
    if hit:
        os.kill(draw.choice(ranks), signal.SIGKILL)
    ended = call.wait(END_LIMIT)
    wrong = []
    lines = [line for line in ended.output.split("\n") if line.startswith("mu: ")]
    if ended.code == forked.NO_ANSWER:
        wrong.append(f"no end within {END_LIMIT:.0f} s")
    elif hit and ended.code != 1:
        wrong.append(f"ended with {ended.code}")
    if hit and not any("SIGKILL" in line and "rank" in line for line in lines):
        wrong.append(f"no line names rank and SIGKILL: {last_line(ended.output)}")
    if any("unexpected" in line for line in lines):
        wrong.append(last_line(ended.output))
    return wrong + finish(world, case, folder, dict(expected))


def rank_hangs(world: World, folder: Path, draw: random.Random) -> list[str]:
    """A stopped rank ends the run after the recipe's time-out, with one line."""
    key = timeout_key()
    if not key:
        return ["no key of a recipe sets how long ranks wait for each other"]
    case = BY_NAME["pretrain, 2 ranks"]
    calm, _ = world.calm(case)
    call = forked.start([*case.words, "-o", f"{key}=10"], folder, tag="hangs")
    time.sleep(draw.uniform(0.3, 0.8) * calm.seconds)
    ranks = forked.ranks_of(call)
    if ranks:
        os.kill(draw.choice(ranks), signal.SIGSTOP)
    ended = call.wait(END_LIMIT)
    # the process that tracks shared memory ends once the launcher's end of its pipe is closed
    left = not forked.gone(call.pid, 5.0)
    forked.end_group(call.pid)
    if ended.code == forked.NO_ANSWER:
        return [f"no end within {END_LIMIT:.0f} s of a rank that hangs, with {key}=10"]
    wrong = ["processes are left"] if left else []
    if ended.code not in (0, 1) or "unexpected" in ended.output:
        wrong.append(f"ended with {ended.code}: {last_line(ended.output)}")
    return wrong


def timeout_key() -> str:
    """The key of a recipe that bounds the wait for a rank."""
    import dataclasses

    from medunifier_cli.recipe.schema_train import LoopConfig

    names = [
        item.name
        for item in dataclasses.fields(LoopConfig)
        if "timeout" in item.name or "patience" in item.name
    ]
    return f"train.{names[0]}" if names else ""


def ranks_disagree(key: str) -> Callable[..., list[str]]:
    """Ranks with other recipes: both end with 1, and a line says who differs."""

    def kind(world: World, folder: Path, draw: random.Random) -> list[str]:
        words = ALONE["pretrain"]
        calls = start_pair(folder, words, torchrun, [*words, "-o", key])
        ended = [call.wait(END_LIMIT) for call in calls]
        codes = [end.code for end in ended]
        if codes != [1, 1]:
            return [f"ended with {codes}: {last_line(ended[0].output)}"]
        text = ended[0].output + ended[1].output
        return [] if "rank" in text and "unexpected" not in text else [last_line(ended[0].output)]

    return kind


def launcher_killed(world: World, folder: Path, draw: random.Random) -> list[str]:
    """The launcher is killed, while ranks start or later: no orphans, no lock, then an equal end."""
    case = BY_NAME["pretrain, 2 ranks"]
    calm, expected = world.calm(case)
    call = forked.start(case.words, folder, tag="launcher")
    time.sleep(draw.choice((draw.uniform(0.0, 0.2), draw.uniform(0.2, 0.9))) * calm.seconds)
    call.signal(signal.SIGKILL)
    call.wait()
    wrong = [] if forked.gone(call.pid, 60.0) else ["ranks were still there 60 s after their launcher"]
    forked.end_group(call.pid)
    return wrong + finish(world, case, folder, dict(expected))


def at_once(first: list[str], second: list[str]) -> Callable[..., list[str]]:
    """Two calls that make the same cache at once both succeed."""

    def kind(world: World, folder: Path, draw: random.Random) -> list[str]:
        calls = [forked.start(words, folder, tag=f"call{i}") for i, words in enumerate((first, second))]
        return _ends(calls, (0,))

    return kind


def started_twice(world: World, folder: Path, draw: random.Random) -> list[str]:
    """The same training twice at once: one ends with 0, the other says so; `--fresh` moves nothing away."""
    case = BY_NAME["pretrain"]
    _, expected = world.calm(case)
    words = list(case.words)
    calls = [forked.start(words, folder, tag="first")]
    time.sleep(draw.uniform(0.0, 0.5))
    calls.append(forked.start([*words, "--fresh"] if draw.random() < 0.5 else words, folder, tag="second"))
    ended = [call.wait() for call in calls]
    wrong = [f"ended with {e.code}: {last_line(e.output)}" for e in ended if e.code not in (0, 1)]
    wrong += [last_line(e.output) for e in ended if "unexpected" in e.output]
    if not any(e.code == 0 for e in ended):
        wrong.append(f"neither succeeded: {[last_line(e.output) for e in ended]}")
    for old in folder.glob("runs/new.old-*"):
        shutil.rmtree(old)
    return wrong + finish(world, case, folder, dict(expected))


def _ends(calls: list[forked.Call], codes: tuple[int, ...]) -> list[str]:
    ended = [call.wait() for call in calls]
    return [f"ended with {end.code}: {last_line(end.output)}" for end in ended if end.code not in codes]


RETRIEVE = ["retrieve", "--run", "base", "--split", "test"]
ZEROSHOT = ["zeroshot", "--run", "base", "--split", "test"]
KINDS: dict[str, Callable[[World, Path, random.Random], list[str]]] = {
    **{f"joined as by srun: {verb}": joined(verb, slurm) for verb in ALONE},
    **{f"joined as by torchrun: {verb}": joined(verb, torchrun) for verb in ("pretrain", "finetune")},
    "a rank of a joined group is killed": joined_rank_killed,
    "a rank is killed": rank_killed,
    "a rank hangs": rank_hangs,
    "the launcher is killed": launcher_killed,
    "ranks disagree on the seed": ranks_disagree("train.seed=5"),
    "ranks disagree on when to validate": ranks_disagree("train.valid_every=2"),
    "retrieve and zeroshot at once": at_once(RETRIEVE, ZEROSHOT),
    "two probes at once": at_once(tune("probe-demo", "one"), tune("probe-demo", "two")),
    "the same training twice at once": started_twice,
    "a job that is warned and requeued": job(fresh=False),
    "a job with --fresh that is warned and requeued": job(fresh=True),
}
