"""SIGTERM, SIGUSR1 and Ctrl-C in every phase: exit code 75 within a minute, and then bit-equal."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time

from tests.campaign import forked
from tests.campaign.home import BY_NAME, Case, World
from tests.campaign.kills import finish, last_line
from tests.campaign.phases import NUMBERS, send_at
from tests.campaign.record import ROOT, Outcome

STOP_LIMIT = 120.0
"""Seconds within which a stopped call ends; a stated minute, doubled for a machine that does other work."""
IN_PRETRAINING = (
    "start-up",
    "tokenizer",
    "building the model",
    "training",
    "saving",
    "validation",
    "held-out measurement",
)
IN_CASE = {
    "prepare": ("drawing",),
    "pretrain": IN_PRETRAINING,
    "pretrain, 2 ranks": IN_PRETRAINING,
    "fit-prior": (
        "start-up",
        "encoding",
        "building the model",
        "training",
        "saving",
        "validation",
        "held-out measurement",
    ),
    "finetune": ("start-up", "training", "saving", "validation", "held-out measurement"),
    "finetune, 2 ranks": ("start-up", "training", "validation", "held-out measurement"),
    "finetune, frozen": ("encoding", "training", "validation", "held-out measurement"),
    "synthesize": ("sampling",),
    "report": ("writing reports",),
    "retrieve": ("encoding",),
    "zeroshot": ("encoding",),
}
REAL = ("pretrain", "finetune, frozen")
"""Cases that are also started as a user starts them, to be stopped while Python still imports."""


def trials(count: int, seed: int) -> list[str]:
    """Every phase of every case with every signal, in an order that the seed gives; at most `count`."""
    names = [
        f"{case}/{phase}/{name}"
        for case, phases in IN_CASE.items()
        for phase, name in itertools.product(phases, NUMBERS)
    ]
    names += [f"{case}/imports/{name}" for case in REAL for name in NUMBERS]
    random.Random(f"signals {seed}").shuffle(names)
    many = (names * (count // len(names) + 1))[:count]
    return [f"signals/{seed}/{number}/{name}" for number, name in enumerate(many)]


def trial(world: World, name: str) -> Outcome:
    """One trial: stop at the beginning of a phase, look at the exit code, finish, compare."""
    _, _, number, case_name, phase, signal_name = name.split("/")
    case, draw, started = BY_NAME[case_name], random.Random(name), time.monotonic()
    _, expected = world.calm(case)
    folder = world.copy(f"trial-s{number}", case)
    if phase == "imports":
        code, output = _real(case, folder, NUMBERS[signal_name], draw.uniform(0.0, 3.0))
    else:
        group = signal_name == "INT" and case.ranks > 1
        call = forked.start(
            case.words,
            folder,
            tag="stop",
            before=send_at(phase, NUMBERS[signal_name], draw.choice((1, 1, 2)), group),
        )
        ended = call.wait(STOP_LIMIT)
        code, output = ended.code, ended.output
        if not forked.gone(call.pid, 10.0):
            output += "\nmu: processes of the run were still there 10 s later"
            code = forked.NO_ANSWER
        forked.end_group(call.pid)
    sent = phase == "imports" or "campaign: sent" in output
    failures = _judge(case, code, output, signal_name, sent)
    failures += finish(world, case, folder, expected)
    if failures:
        failures = [f"{case_name}, {signal_name} at {phase}: {'; '.join(failures)}"]
        world.keep(folder, name)
    world.remove(folder)
    return Outcome(
        "signals", f"{phase}: {signal_name}", name, int(sent), failures, time.monotonic() - started
    )


def _judge(case: Case, code: int, output: str, name: str, sent: bool) -> list[str]:
    if code == forked.NO_ANSWER:
        return [f"not ended after {STOP_LIMIT:.0f} s: {last_line(output)}"]
    if not sent:
        return [] if code == 0 else [f"ended with {code} before the signal: {last_line(output)}"]
    # Ctrl-C may interrupt at once what has nothing to save; 0: the work was done when the signal came
    allowed = {0, 75} if name != "INT" or case.training else {0, 75, 130}
    if case.name.startswith("prepare"):  # each shard is whole or absent: it has nothing to save
        allowed |= {-signal.SIGTERM, -signal.SIGUSR1, 130}
    wrong = [] if code in allowed else [f"ended with {code}: {last_line(output)}"]
    if "Traceback" in output:
        wrong.append("a traceback")
    return wrong


def _real(case: Case, folder: object, number: int, after: float) -> tuple[int, str]:
    """The same call in an interpreter of its own, stopped in its first seconds.

    Python tells what it imports, so that no signal comes before it has come to `mu`: what is sent to an
    interpreter that has run no line of ours ends it as the system says.
    """
    env = {**os.environ, "MU_DATA": "data", "MU_RUNS": "runs", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-X", "importtime", "-m", "medunifier_cli", *case.words]
    process = subprocess.Popen(
        line,
        cwd=str(folder),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    for said in process.stdout:
        if b"medunifier_cli.errors" in said:
            break
    # the pipe holds what is said until then; a reader that sleeps must not make the process wait for it
    threading.Timer(after, process.send_signal, [number]).start()
    try:
        output, _ = process.communicate(timeout=STOP_LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return forked.NO_ANSWER, output.decode(errors="replace")
    lines = output.decode(errors="replace").split("\n")
    return process.returncode, "\n".join(text for text in lines if not text.startswith("import time:"))
