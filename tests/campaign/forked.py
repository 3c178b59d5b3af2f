"""Runs `mu` in processes forked from one that has imported PyTorch already, and stops them at exact moments.

A fresh interpreter needs seconds to import PyTorch, a forked one none: only so are hundreds of kills a matter
of minutes. The parent never computes anything with PyTorch, so that it has no threads to lose in a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import sysconfig
import time
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COUNT, KILL_SELF, KILL_GROUP, FULL = range(4)
"""What `writes.c` does at the chosen change."""
LIMIT = 300.0
"""Seconds after which a call counts as hanging; a call takes about one, on a busy machine some ten."""
NO_ANSWER = -1000
"""Stands for the exit code of a process that had not ended after `LIMIT`."""

_library: ctypes.CDLL | None = None


def preload(work: Path) -> None:
    """Start this interpreter over with `writes.c` preloaded, then import all that `mu` may need.

    Without a C compiler the campaign runs on: kills come at random moments only, and a full disk is a limit
    on the size of files.
    """
    global _library
    library = work / "writes.so"
    loaded = os.environ.get("LD_PRELOAD") == str(library)
    if not loaded and build(library):
        os.environ.update(
            LD_PRELOAD=str(library), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1"
        )
        os.execv(sys.executable, [sys.executable, "-m", "tests.campaign", *sys.argv[1:]])
    if loaded:
        _library = ctypes.CDLL(str(library))
        del os.environ["LD_PRELOAD"]  # real processes that a trial starts need none of it
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
    for name in modules():
        importlib.import_module(name)
    # METEOR's Java program takes seconds to start, and is the same with and without an interruption
    meteor = importlib.import_module("medunifier_cli.scores.text.meteor")
    meteor.shutil = types.SimpleNamespace(which=lambda name: None)  # type: ignore[attr-defined]
    # orphans of a killed launcher become children of this process, so that it can see and end them
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def build(library: Path) -> bool:
    """Compile `writes.c`, unless that is done; False where there is no compiler."""
    source = HERE / "writes.c"
    if library.exists() and library.stat().st_mtime > source.stat().st_mtime:
        return True
    library.parent.mkdir(parents=True, exist_ok=True)
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    for name in dict.fromkeys((compiler, "cc", "gcc", "clang")):
        line = [name, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        try:
            if subprocess.run(line, capture_output=True).returncode == 0:
                return True
        except OSError:
            continue
    print("no C compiler: kills come at random moments only, not in the n-th write", file=sys.stderr)
    return False


def modules() -> list[str]:
    """Every module of the package and of the plugins, and what they import only when they need it."""
    root = HERE.parents[1]
    names = [
        "torch",
        "torch.distributed",
        "torch.multiprocessing",
        "accelerate",
        "timm",
        "transformers",
        "h5py",
    ]
    for folder, package in (("medunifier_cli", "medunifier_cli"), ("plugins", "medunifier_plugins")):
        for path in sorted((root / folder).rglob("*.py")):
            dotted = ".".join((package, *path.relative_to(root / folder).with_suffix("").parts))
            if not dotted.endswith("__main__"):
                names.append(dotted.removesuffix(".__init__"))
    return names


def exact() -> bool:
    """Whether processes can be stopped at the n-th change of a file."""
    return _library is not None


@dataclass(frozen=True)
class Ended:
    """How a call of `mu` ended."""

    code: int
    """Exit code; minus the number of the signal that ended it; `NO_ANSWER` where it had to be killed."""
    output: str
    """What it wrote to stdout and stderr."""
    seconds: float
    changes: int = 0
    """Changes of files that the process itself made."""
    additions: int = 0
    """Those of them that need room on the disk."""


@dataclass
class Call:
    """A call of `mu` that runs in a group of processes of its own."""

    pid: int
    folder: Path
    output: Path
    started: float
    code: int | None = None

    def poll(self) -> int | None:
        """Exit code as in `Ended`, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def signal(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to its whole group; none if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, limit: float = LIMIT) -> Ended:
        """Wait for the end; after `limit` seconds the group is killed."""
        deadline = time.monotonic() + limit
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if self.poll() is None:
            end_group(self.pid)
            while self.poll() is None:
                time.sleep(0.005)
            self.code = NO_ANSWER
        seconds = time.monotonic() - self.started
        counts = self.output.with_suffix(".counts")
        changes, additions = map(int, counts.read_text().split()) if counts.exists() else (0, 0)
        assert self.code is not None
        text = self.output.read_bytes().decode(errors="replace")
        return Ended(self.code, text, seconds, changes, additions)


def start(
    words: Sequence[str],
    folder: Path,
    before: Callable[[], None] | None = None,
    arm: tuple[int, int] = (0, COUNT),
    env: Mapping[str, str] | None = None,
    tag: str = "mu",
) -> Call:
    """Fork a process that runs `mu WORDS` with `folder` as its current folder.

    Args:
        before: called in the new process first, to change what it does.
        arm: (the change from 1, what happens there), see `writes.c`; (0, COUNT) only counts.
        env: further variables.
        tag: tells the files with the outputs of several calls in one folder apart.
    """
    output = folder.with_name(f"{folder.name}.{tag}.out")
    output.with_suffix(".counts").unlink(missing_ok=True)
    output.write_bytes(b"")  # a kill may come before the new process opens it
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            code = _child(words, folder, output, before, arm, env or {})
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return Call(pid, folder, output, time.monotonic())


def run(words: Sequence[str], folder: Path, **more: Any) -> Ended:
    """`start`, and wait."""
    return start(words, folder, **more).wait()


def _child(
    words: Sequence[str],
    folder: Path,
    output: Path,
    before: Callable[[], None] | None,
    arm: tuple[int, int],
    env: Mapping[str, str],
) -> int:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0), os.dup2(handle, 1), os.dup2(handle, 2)
    os.close(handle), os.close(null)
    os.chdir(folder)
    os.environ.update({"MU_DATA": "data", "MU_RUNS": "runs", **env})
    sys.argv = ["mu", *words]
    # Ranks are spawned by `mu`: a minute of imports for every hundred. Forked ones have them already.
    contexts = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: contexts("fork" if method == "spawn" else method)  # type: ignore[assignment]
    if before is not None:
        before()
    if _library is not None:
        _library.campaign_arm(ctypes.c_long(arm[0]), arm[1])
    from medunifier_cli.__main__ import main

    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush(), sys.stderr.flush()
    if _library is not None:
        counts = f"{_library.campaign_changes()} {_library.campaign_additions()}"
        _library.campaign_arm(ctypes.c_long(0), COUNT)
        output.with_suffix(".counts").write_text(counts)
    return code


def end_group(group: int) -> None:
    """Kill all processes of a group and wait until none is left."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
    gone(group, 20.0)


def gone(group: int, limit: float) -> bool:
    """Whether all processes of a group but its first have ended within `limit` seconds."""
    deadline = time.monotonic() + limit
    while True:
        alive = [pid for pid in members(group) if pid != group]
        for pid in alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)  # an orphan that has ended
        if not alive:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def members(group: int) -> list[int]:
    """The processes of a group that have not ended, by /proc."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, _, of = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if int(of) == group and state != b"Z":
                found.append(int(entry))
    return found


def ranks_of(call: Call) -> list[int]:
    """The processes that a launcher has started, once there are any; none if it has ended."""
    while call.poll() is None:
        others = [pid for pid in members(call.pid) if pid != call.pid]
        if ranks := [pid for pid in others if not _tracks_resources(pid)]:
            return ranks
        time.sleep(0.005)
    return []


def _tracks_resources(pid: int) -> bool:
    """Whether it is the process by which `multiprocessing` deletes what others leave behind, and no rank."""
    try:
        return b"resource_tracker" in Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return True  # it has ended


def in_child(work: Callable[[], None]) -> None:
    """Call something in a forked process, so that this one stays without threads; raises if it failed."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise RuntimeError("the work of a forked process failed; see above")
