"""Worker processes that answer in order, over pipes and nothing else.

No executor whose threads a failed task could leave waiting: that of concurrent.futures hangs at shutdown
after a task that does not pickle (seen with Python 3.11).
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
    "a decoding process died, often for want of memory; run the same command again with fewer --workers, "
    "it goes on at the last whole shard"
)
AHEAD = 3
"""Tasks per worker that are under way or lie unread: bounds memory."""
WATCH = 1.0
"""Seconds between a worker's looks at whether its parent lives."""

W = TypeVar("W")
T = TypeVar("T")
A = TypeVar("A")


class _Worker(Generic[T, A]):
    """One process and the pipe to it."""

    def __init__(self, work: Callable[[T], A]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_serve, args=(theirs, work, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()  # so that reading ends when the worker does

    def take(self, task: T) -> None:
        """Give it a task."""
        try:
            self.pipe.send(task)
        except ConnectionError as error:
            raise MuError(DIED) from error

    def answer(self) -> A:
        """The answer to the oldest open task; raises what the task raised."""
        try:
            good, value = self.pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise MuError(DIED) from error
        if not good:
            raise value
        answer: A = value
        return answer


def ordered_map(
    work: Callable[[T], A], tasks: Iterable[tuple[W, T]], workers: int
) -> Generator[tuple[W, A], None, None]:
    """(what, work(task)) of each (what, task), in order.

    Args:
        work: pickles, where processes are not forked.
        tasks: read only as far ahead as the workers need; `what` stays here.
        workers: processes; 0 and 1 work in this one.

    Raises:
        MuError: a worker died. And whatever `work` raises.
    """
    if workers <= 1:
        for what, task in tasks:
            yield what, work(task)
        return
    pool: list[_Worker[T, A]] = []
    waiting: deque[tuple[W, _Worker[T, A]]] = deque()
    try:
        for number, (what, task) in enumerate(tasks):
            if len(pool) < workers:
                pool.append(_Worker(work))
            worker = pool[number % workers]
            worker.take(task)
            waiting.append((what, worker))
            if len(waiting) == workers * AHEAD:
                said, oldest = waiting.popleft()
                yield said, oldest.answer()
        for said, oldest in waiting:
            yield said, oldest.answer()
    finally:
        for worker in pool:
            worker.process.terminate()  # it holds nothing but the task it works on
        for worker in pool:
            worker.process.join()
            worker.pipe.close()


def _serve(pipe: Connection, work: Callable[[Any], Any], parent: int) -> None:
    """Answer tasks until the parent ends this process, or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # Reads while the worker works: a parent that sends is never kept waiting by one that wants to answer.
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
    try:
        while True:
            while not pipe.poll(WATCH):
                if os.getppid() != parent:  # killed; forked siblings keep the pipe open
                    os._exit(1)
            tasks.put(pipe.recv())
    except (EOFError, OSError):
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(type(error).__name__)
    return error
