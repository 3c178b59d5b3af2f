"""Notice a rank that fails, dies or hangs: each has a connection to rank 0, and a thread that watches it.

The kernel closes a connection when its process ends, however it ends, so a death is noticed at once, with any
backend and on any machine. Each rank also sends how far it is: one that falls silent, or stays behind the
others, for longer than the time-out hangs. Then one line names it and this process ends. The thread has to
end it: the main one waits in C++, in a collective operation that is never completed, where no exception
reaches it.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from medunifier_cli.terminal.say import say

CONNECT_LIMIT = 30.0
"""Seconds for the connection to rank 0, which all ranks open right after they have met."""
BEAT = 2.0
"""Seconds between two signs of life; a quarter of the time-out where that is less."""
GRACE = 3.0
"""Seconds that the main thread is given to end by itself once another rank is lost."""
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Addresses that no other machine reaches."""
LONGEST = 4096
"""Bytes that are read at once; a message has some 50, and one that names a lost rank some 300."""


@dataclass
class Peer:
    """What is known of a rank."""

    connection: socket.socket | None
    name: str
    """Host and process."""
    heard: float
    """When it last gave a sign of life, by this machine's clock."""
    progress: int = 0
    behind_since: float | None = None
    """Since when others are further than it is; None as long as it is not behind."""
    rest: bytes = b""
    """The part of a message that has come so far."""


class Lifeline:
    """This rank's end of the connections; rank 0 has one to every other rank.

    Args:
        rank: of this process.
        ranks: how many there are.
        timeout: seconds after which a rank that is silent or behind counts as hanging.
        launched: a parent process watches the ranks, and reports how one of them died.
        setting: what sets the time-out, for messages.
    """

    def __init__(self, rank: int, ranks: int, timeout: float, launched: bool, setting: str = "") -> None:
        self.rank, self.ranks, self.timeout, self.launched = rank, ranks, timeout, launched
        self.setting = setting
        self.verdict = ""
        """Why the group has ended; empty as long as it has not."""
        self.code = 1
        """Exit code of the rank that ended it: that of a stop, where a signal came to that rank alone."""
        self.progress = 0
        """Number of steps and collective operations that the main thread has begun: alike on all ranks."""
        # several beats must fit into the time-out, or one that is late would end a run that is well
        self._beat = min(BEAT, timeout / 4)
        self._peers: dict[int, Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        """The main thread ends this process: nothing more is reported."""
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def listen(self, address: str) -> tuple[socket.socket, str]:
        """On rank 0: the socket at which it waits for the others, and what they need to reach it."""
        # whoever can reach the port of the group may connect: the token tells our ranks from others
        host = address if address in LOCAL else ""
        server = socket.create_server((host, 0), backlog=self.ranks)
        return server, f"{server.getsockname()[1]} {secrets.token_hex(16)}"

    def accept(self, server: socket.socket, place: str) -> list[int]:
        """On rank 0: take the connections of the others; returns the ranks that did not come."""
        token = place.split()[1]
        deadline = time.monotonic() + CONNECT_LIMIT
        with server:
            while len(self._peers) < self.ranks - 1 and (left := deadline - time.monotonic()) > 0:
                server.settimeout(left)
                try:
                    connection, _ = server.accept()
                    connection.settimeout(left)
                    hello = json.loads(connection.recv(LONGEST))
                    if not secrets.compare_digest(hello["token"], token):
                        raise ValueError
                    connection.sendall(own_name().encode())
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # not one of ours: a port scan, for example
                self._add(int(hello["rank"]), connection, str(hello["name"]))
        return sorted(set(range(1, self.ranks)) - self._peers.keys())

    def connect(self, address: str, place: str) -> None:
        """On another rank: open the connection to rank 0.

        Raises:
            OSError: rank 0 cannot be reached.
        """
        port, token = place.split()
        connection = socket.create_connection((address, int(port)), timeout=CONNECT_LIMIT)
        hello = {"token": token, "rank": self.rank, "name": own_name()}
        connection.sendall(json.dumps(hello).encode())
        # an answer first: what this rank sends next must not be read as a part of its hello
        name = connection.recv(LONGEST).decode()
        if not name:
            raise ConnectionResetError
        self._add(0, connection, name)

    def watch(self) -> None:
        """Begin to watch the connections, in a thread of its own."""
        # A loader process is a fork of this one, and may outlive it by seconds. As long as it holds a copy of
        # a connection, the kernel does not close it, and the death of this rank goes unnoticed.
        os.register_at_fork(after_in_child=self._close_copies)
        # a daemon: the end of the main thread must not wait for it
        threading.Thread(target=self._watch, daemon=True, name="lifeline").start()

    def fail(self, code: int) -> None:
        """Tell the others that this rank ends with an error, which it reports itself, and with which code."""
        self._ended.set()
        self._tell({"failed": self.rank, "code": code})
        self._outlast()

    def leave(self) -> None:
        """Tell the others that this rank is done. Rank 0 goes last: the others meet at its port."""
        self._outlast()
        self._ended.set()
        self._tell({"left": self.rank})
        self._closed.set()

    def _outlast(self) -> None:
        """On rank 0: let the others go first, which read from its process: torch complains if it is gone."""
        deadline = time.monotonic() + GRACE
        while self.rank == 0 and self._peers and not self.verdict and time.monotonic() < deadline:
            time.sleep(0.01)

    def await_verdict(self) -> str:
        """Why a collective operation failed, as the thread finds out within `GRACE`; empty if it does not."""
        # the main thread has the error of its own collective operation first, by some milliseconds
        deadline = time.monotonic() + GRACE
        while not self.verdict and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.verdict

    def _add(self, rank: int, connection: socket.socket, name: str) -> None:
        connection.settimeout(self._beat)  # for sending: a stopped process does not read
        self._peers[rank] = Peer(connection, name, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ, rank)

    def _close_copies(self) -> None:
        for peer in self._peers.values():
            if peer.connection is not None:
                peer.connection.close()

    def _watch(self) -> None:
        looked = told = time.monotonic()
        own = Peer(None, own_name(), looked)
        while not self._closed.is_set():
            ready = [key.data for key, _ in self._selector.select(self._beat / 4)]
            if not self._peers:
                time.sleep(self._beat / 4)  # `select` does not wait for nothing
            now = time.monotonic()
            if now - looked > 2 * self._beat + 1:
                # this process was stopped itself, perhaps with all the others: what it missed tells nothing
                for peer in self._peers.values():
                    peer.heard, peer.behind_since = now, None
            looked = now
            for rank in ready:
                self._read(rank)
            if now - told >= self._beat:
                told = now
                self._tell({"progress": self.progress})
            own.heard, own.progress = now, self.progress
            if not self._ended.is_set():
                self._look_for_hanging(own, now)

    def _read(self, rank: int) -> None:
        """Take what has come from a rank."""
        peer = self._peers.get(rank)
        if peer is None or peer.connection is None:
            return
        try:
            received = peer.connection.recv(LONGEST)
        except TimeoutError:
            return
        except OSError:  # reset, by a process that ended with unread messages
            received = b""
        if not received:
            self._drop(rank)
            self._lost(rank, peer, "has died")
            return
        peer.heard = time.monotonic()
        # a stream has no messages: what is read may end in the middle of one
        *lines, peer.rest = (peer.rest + received).split(b"\n")
        for line in filter(None, lines):
            message: dict[str, Any] = json.loads(line)
            if "left" in message:
                self._drop(rank)
                return
            if "failed" in message:
                why = message.get("why") or f"rank {message['failed']} failed"
                self._end(why, reported=True, code=message["code"])
                return
            peer.progress = message["progress"]

    def _look_for_hanging(self, own: Peer, now: float) -> None:
        """Report the first rank that is silent, or behind the others, for longer than the time-out."""
        for rank, peer in list(self._peers.items()):
            if now - peer.heard > self.timeout:
                self._lost(rank, peer, f"has not answered for {self.timeout:.0f} s{self.setting}")
                return
        if self.rank != 0 or not self._peers:
            return  # only rank 0 knows how far the others are
        everybody = {0: own, **self._peers}
        # Since when a rank is behind is counted, not since when it stands still: all stand still while the
        # main one works and the others wait at a barrier, which counts nothing.
        furthest = max(peer.progress for peer in everybody.values())
        for rank, peer in everybody.items():
            if peer.progress >= furthest:
                peer.behind_since = None
            elif peer.behind_since is None:
                peer.behind_since = now
            elif now - peer.behind_since > self.timeout:
                self._lost(
                    rank, peer, f"has not come where the others wait for {self.timeout:.0f} s{self.setting}"
                )
                return

    def _lost(self, rank: int, peer: Peer, what: str) -> None:
        """Report that a rank is lost, and end this one."""
        died = what == "has died"
        advice = (
            "the usual cause is memory, of the GPU or of the machine"
            if died
            else "look at its machine, GPU and file systems"
        )
        # One line: from rank 0; if that is the lost one, from rank 1 and from the first rank of each machine.
        # How a process of this machine died is known to the parent, which says more.
        others_speak = self.rank > 1 and os.environ.get("LOCAL_RANK") != "0"
        reported = (died and self.launched) or others_speak
        self._end(f"rank {rank} ({peer.name}) {what}; {advice}; the same command resumes", reported, 1)

    def _end(self, why: str, reported: bool, code: int) -> None:
        with self._lock:
            if self._ended.is_set():
                return  # the main thread was faster
            if not reported:
                # before the verdict: with it the main thread may end the process, and the line would be lost
                say(why, always=True)
            self.verdict, self.code = why, code
        if self.rank == 0:  # the others have no connection but this one
            self._tell({"failed": 0, "why": why, "code": code})
        # the main thread may still get an exception and end in order: it sets `_ended` then
        if not self._ended.wait(GRACE):
            os._exit(code)

    def _tell(self, message: dict[str, Any]) -> None:
        content = json.dumps(message).encode() + b"\n"
        for peer in list(self._peers.values()):
            try:
                if peer.connection is not None:
                    peer.connection.sendall(content)
            except OSError:
                continue  # closed, as the next read will show, or full, as its process is stopped

    def _drop(self, rank: int) -> None:
        peer = self._peers.pop(rank)
        if peer.connection is not None:
            self._selector.unregister(peer.connection)
            peer.connection.close()


def own_name() -> str:
    """Host and number of this process, for messages."""
    return f"{socket.gethostname()}, process {os.getpid()}"
