"""Python processes for tests, forked from one that has imported PyTorch and the package already.

A fresh interpreter computes for four seconds before it comes to the first line of a command that trains,
each of its ranks as long; a forked one starts at once. A test sees the same: arguments, variables, folder,
signals, exit code and output are its own. What only a fresh interpreter has needs `subprocess`: its own seed
of hashes, variables that Python or a library reads while it starts, a `spawn` that imports everything anew.

The process that forks computes nothing and has one thread, so that no fork loses any. It is no child of the
test's process, whose children tests count.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import multiprocessing
import os
import random
import runpy
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.folders import ROOT

LIBRARIES = ("torch", "torch.distributed", "torch.multiprocessing", "accelerate", "timm", "h5py", "PIL.Image")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)


class Warm:
    """A forked process, as `subprocess.Popen` would show it; it leads a session and a group of its own."""

    def __init__(self, pid: int, out: Path, args: Sequence[str]) -> None:
        self.pid, self.args = pid, args
        self.returncode: int | None = None
        self._out = out

    def poll(self) -> int | None:
        """Exit code, or minus the number of the signal that ended it; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(FileNotFoundError):
                self.returncode = int(self._out.with_suffix(".code").read_text())
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """Wait for the end: stdout and, where it was asked for apart, stderr."""
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._out.read_bytes().decode()

    @property
    def stderr(self) -> str:
        error = self._out.with_suffix(".err")
        return error.read_bytes().decode() if error.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _server() -> tuple[subprocess.Popen[str], Path, int]:
    """The pipes of the process that forks, the folder of its children's output, and its number."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", "tests.warm"]
    process = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=env, text=True
    )
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert process.wait() == 0
    return process, folder, int(_answer(process))


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    answer = process.stdout.readline()
    assert answer, "the process that forks has ended; its error is above"
    return answer


def start(
    words: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    apart: bool = False,
) -> Warm:
    """Start `python WORDS`, which are `-c CODE ...` or `-m MODULE ...`.

    Args:
        env: all variables; those of this process by default.
        apart: keep stderr apart from stdout.
    """
    process, folder, _ = _server()
    assert process.stdin is not None
    handle, name = tempfile.mkstemp(".out", dir=folder)
    os.close(handle)
    ask = {
        "words": [str(word) for word in words],
        "env": dict(os.environ if env is None else env),
        "cwd": str(cwd),
        "out": name,
        "apart": apart,
    }
    process.stdin.write(json.dumps(ask) + "\n")
    process.stdin.flush()
    return Warm(int(_answer(process)), Path(name), ask["words"])  # type: ignore[arg-type]


def run(
    words: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    timeout: float = 600.0,
) -> subprocess.CompletedProcess[str]:
    """`start`, and wait for the end; stdout and stderr are kept apart."""
    process = start(words, env=env, cwd=cwd, apart=True)
    out, err = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _modules() -> Iterator[str]:
    """What a command may import, but for its entry points."""
    yield from LIBRARIES
    for folder, package in (("medunifier_cli", "medunifier_cli"), ("plugins", "medunifier_plugins")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            dotted = ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
            if not dotted.endswith("__main__"):
                yield dotted.removesuffix(".__init__")


def _serve() -> None:
    """Fork a process for each line of stdin until that ends; note how each of them ends."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.write(1, f"{os.getpid()}\n".encode())
    for name in _modules():
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would touch, and so copy, every page
    children: dict[int, Path] = {}
    asked = b""
    while True:
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            code = children.pop(pid).with_suffix(".code")
            code.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
            code.with_suffix(".new").rename(code)
        if not select.select([0], [], [], 0.01 if children else None)[0]:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        asked += read
        while b"\n" in asked:
            line, asked = asked.split(b"\n", 1)
            ask = json.loads(line)
            pid = os.fork()
            if not pid:
                _be(ask)
            children[pid] = Path(ask["out"])
            os.write(1, f"{pid}\n".encode())


def _be(ask: Mapping[str, Any]) -> None:
    """Become the process that was asked for; does not return."""
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    out = os.open(ask["out"], os.O_WRONLY | os.O_APPEND)
    err = out
    if ask["apart"]:
        err = os.open(Path(ask["out"]).with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(ask["env"])
    os.chdir(ask["cwd"])
    tempfile.tempdir = None
    random.seed()
    importlib.import_module("numpy").random.seed()
    # ranks are spawned, and would import all of it anew; forked ones have it
    contexts = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: contexts("fork" if method == "spawn" else method)  # type: ignore[assignment]
    code = _ended(functools.partial(_python, ask["words"]))
    # as an interpreter ends
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


def _python(words: Sequence[str]) -> None:
    kind, what = words[:2]
    sys.argv = [kind, *words[2:]]
    if kind == "-m":
        sys.path[0] = os.getcwd()
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    assert kind == "-c", words
    sys.path[0] = ""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(what, "<string>", "exec"), main.__dict__)


def _ended(work: Callable[[], None]) -> int:
    """The exit code of an interpreter that does the work; an interrupted one is ended by the signal."""
    try:
        work()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
