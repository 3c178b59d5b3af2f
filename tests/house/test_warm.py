"""A forked process of `tests/warm.py` ends, speaks and is stopped as a fresh interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests import warm

SCRIPTS = {
    "ends": "print('done')",
    "arguments": "import sys; print(sys.argv)",
    "variables": "import os; print(os.environ['MARK'], 'PATH' in os.environ, os.getcwd())",
    "main": "import __main__, pickle\n"
    "def f(): pass\nprint(__name__, pickle.loads(pickle.dumps(f)) is __main__.f)",
    "code": "import sys; print('said', file=sys.stderr); sys.exit(75)",
    "text": "import sys; sys.exit('mu: no')",
    "none": "import sys; sys.exit()",
    "error": "raise ValueError('wrong')",
    "interrupted": "raise KeyboardInterrupt",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "at once": "import os; os._exit(3)",
    "clean-up": "import atexit; atexit.register(print, 'last'); print('first')",
    "threads": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\nprint('main')",
    "no input": "import sys; print(repr(sys.stdin.read()))",
    "group": "import os; print(os.getpid() == os.getpgrp() == os.getsid(0))",
    "handlers": "import signal\n"
    "print([signal.getsignal(n) for n in (10, 15)], signal.pthread_sigmask(0, ()))",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_as_a_fresh_one(name: str, tmp_path: Path) -> None:
    words = ["-c", SCRIPTS[name], "a", "b c"]
    env = {"PATH": os.environ["PATH"], "MARK": "mark"}
    fresh = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, start_new_session=True, check=False,
    )  # fmt: skip
    forked = warm.run(words, cwd=tmp_path, env=env)
    assert (forked.returncode, forked.stdout) == (fresh.returncode, fresh.stdout)
    assert forked.stderr.splitlines()[-1:] == fresh.stderr.splitlines()[-1:]


def test_it_has_pytorch_and_one_thread_and_is_no_child() -> None:
    done = warm.run(
        ["-c", "import sys, torch\nprint('medunifier_cli.cli' in sys.modules, torch.get_num_threads())"]
    )
    assert done.stdout == "True 1\n", done.stderr
    server = psutil.Process(warm._server()[2])
    assert server.num_threads() == 1
    assert server not in psutil.Process().children(recursive=True)


def test_it_is_stopped_and_one_that_hangs_is_killed() -> None:
    words = ["-c", "import time\nprint('up', flush=True)\ntime.sleep(600)"]
    for number in (signal.SIGTERM, signal.SIGINT):
        process = warm.start(words)
        while process.stdout != "up\n":
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == -number
    process = warm.start(words)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.wait(60) == -signal.SIGKILL
