"""A pool of worker processes whose results come in the order of the tasks.

Built on pipes alone, since the executor of concurrent.futures hangs at shutdown after a task that does not
pickle (observed with Python 3.11).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from medunifier_cli.errors import MuError

DIED = (
    "a decoding process died, usually because memory ran out; run the same command again with fewer "
    "--workers, it resumes after the last finished shard"
)
AHEAD = 3
"""Maximum number of tasks per worker that are sent but whose results are not yet read; bounds memory."""
WATCH = 1.0
"""Seconds between a worker's checks that its parent is alive."""

W = TypeVar("W")
T = TypeVar("T")
A = TypeVar("A")


class _Worker(Generic[T, A]):
    """A process and the pipe to it."""

    def __init__(self, work: Callable[[T], A]) -> None:
        self.pipe, other_end = multiprocessing.Pipe()
        self.process = multiprocessing.Process(
            target=_serve, args=(other_end, work, os.getpid()), daemon=True
        )
        self.process.start()
        # Only the worker may hold its end: then reading fails as soon as the worker dies, instead of waiting.
        other_end.close()

    def take(self, task: T) -> None:
        """Send a task."""
        try:
            self.pipe.send(task)
        except ConnectionError as error:
            raise MuError(DIED) from error

    def answer(self) -> A:
        """The result of the oldest open task; raises what the task raised."""
        try:
            succeeded, value = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise MuError(DIED) from error
        if not succeeded:
            raise value
        answer: A = value
        return answer


def ordered_map(
    work: Callable[[T], A], tasks: Iterable[tuple[W, T]], workers: int
) -> Generator[tuple[W, A], None, None]:
    """(label, work(task)) for each (label, task), in order.

    Args:
        work: must pickle where processes are not forked.
        tasks: read only as far ahead as the workers need; labels stay in this process.
        workers: number of processes; 0 and 1 work in this one.

    Raises:
        MuError: a worker died. Errors raised by `work` are raised here as well.
    """
    if workers <= 1:
        for label, task in tasks:
            yield label, work(task)
        return
    pool: list[_Worker[T, A]] = []
    waiting: deque[tuple[W, _Worker[T, A]]] = deque()
    try:
        for number, (label, task) in enumerate(tasks):
            if len(pool) < workers:
                pool.append(_Worker(work))
            # In turn, not to whichever is free: then the results need no sorting, and one slow image delays
            # the others by no more than the tasks under way.
            worker = pool[number % workers]
            worker.take(task)
            waiting.append((label, worker))
            if len(waiting) == workers * AHEAD:
                first, worker = waiting.popleft()
                yield first, worker.answer()
        for first, worker in waiting:
            yield first, worker.answer()
    finally:
        for worker in pool:
            worker.process.terminate()  # loses nothing: workers only compute, this process writes
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _serve(pipe: Connection, work: Callable[[Any], Any], parent: int) -> None:
    """Answer tasks until the parent ends this process or has ended itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Tasks are received while the worker computes. Otherwise parent and worker could both be sending into a
    # full pipe, each waiting for the other to read.
    threading.Thread(target=_receive, args=(pipe, tasks, parent), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            answer = True, work(task)
        except Exception as error:
            answer = False, _sendable(error)
        try:
            pipe.send(answer)
        except OSError:
            os._exit(1)


def _receive(pipe: Connection, tasks: queue.SimpleQueue[Any], parent: int) -> None:
    """Move tasks from the pipe to the queue; ends the process when the parent is gone."""
    try:
        while True:
            while not pipe.poll(WATCH):
                # A closed pipe would not show that the parent was killed: forked siblings hold it open.
                if os.getppid() != parent:
                    os._exit(1)
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error, or only the name of its type if it does not pickle: its text may quote a report."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(type(error).__name__)
    return error
