"""Exchange small values between ranks through the group's key-value store, with a limit or without.

Not by collective operations: in those, a rank that stays away cannot be named, and the time-out of gradients
would also end the wait for a main rank that learns a vocabulary or measures a result for hours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from medunifier_cli.errors import GroupError

LOOK = (0.005, 0.25)
"""Seconds between two looks at the store: at first, and at most."""
STORE_LIMIT = 60.0
"""Seconds that the store may take for one answer."""


class Meeting:
    """Where the ranks of a group meet: the store that torch has made for it.

    Args:
        rank: of this process.
        ranks: how many there are.

    Attributes:
        lost: says why the group has ended, once it has; nobody is waited for then.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        # where `torch.distributed` takes them from; not at the top, as not every build of torch has them
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        self.rank, self.ranks = rank, ranks
        self.lost: Callable[[], str] = lambda: ""
        # a connection of its own: torch's waits block the one they use
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
            timeout=timedelta(seconds=STORE_LIMIT), wait_for_workers=False,
        )  # fmt: skip
        # torchrun's store outlives the workers that it starts anew, and with it their old values
        self._store = PrefixStore(f"mu/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._number = 0

    def exchange(self, value: Any, limit: float | None = None) -> list[Any]:
        """Each rank's value, in order of rank, on all of them.

        Args:
            value: fits JSON.
            limit: seconds to wait for the others; None waits as long as their processes live.

        Raises:
            GroupError: not all came within the limit, or rank 0 can no longer be reached.
        """
        # all ranks come to the same exchanges in the same order, so the number alone tells them apart
        self._number += 1
        with _reaching_rank_0():
            return self._exchange(value, limit)

    def _exchange(self, value: Any, limit: float | None) -> list[Any]:
        keys = [f"{self._number}/{rank}" for rank in range(self.ranks)]
        self._store.set(keys[self.rank], json.dumps(value))
        pause, started = LOOK[0], time.monotonic()
        while not self._store.check(keys):
            if limit is not None and time.monotonic() - started > limit:
                away = [rank for rank, key in enumerate(keys) if not self._store.check([key])]
                error = GroupError(
                    f"{names(away)} did not come within {limit:.0f} s (train.timeout); look at the machine, "
                    "GPU and file systems there; the same command resumes"
                )
                error.reported = self.rank != min(set(range(self.ranks)) - set(away))
                raise error
            if why := self.lost():
                error = GroupError(why)
                error.reported = True
                raise error
            # in Python, where signal handlers run, and not in the store's own wait in C++
            time.sleep(pause)
            pause = min(2 * pause, LOOK[1])
        return [json.loads(self._store.get(key)) for key in keys]

    def tell(self, name: str, text: str) -> None:
        """Leave a text for the other ranks."""
        with _reaching_rank_0():
            self._store.set(name, text)

    def told(self, name: str) -> str:
        """The text that another rank leaves under this name."""
        with _reaching_rank_0():
            return bytes(self._store.get(name)).decode()


@contextmanager
def _reaching_rank_0() -> Iterator[None]:
    """Surround what asks the store, which is in the process of rank 0.

    Raises:
        GroupError: that process has ended. Whoever watches the ranks says how, if they are watched already.
    """
    from torch.distributed import DistError

    try:
        yield
    except DistError as cause:
        error = GroupError(
            "rank 0, in whose process the ranks meet, can no longer be reached; the same command resumes"
        )
        error.reported = "FORK_LAUNCHED" in os.environ
        raise error from cause


def names(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 1, 2 and 5`; at most four of them."""
    shown = [str(rank) for rank in ranks[:4]]
    if len(ranks) > len(shown):
        return f"ranks {', '.join(shown)} and {len(ranks) - len(shown)} more"
    *first, last = shown
    return f"ranks {', '.join(first)} and {last}" if first else f"rank {last}"
