"""The store in which ranks meet is in the process of rank 0, which may end before any rank is watched."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medunifier_cli.distributed.meeting import Meeting
from medunifier_cli.errors import GroupError

MAIN = """
import sys
from torch.distributed import TCPStore

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("launched", [False, True])
def test_a_main_rank_that_has_died_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as main:
        assert main.stdout is not None
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", main.stdout.readline().decode().strip())
        monkeypatch.delenv("FORK_LAUNCHED", raising=False)
        if launched:
            monkeypatch.setenv("FORK_LAUNCHED", "1")
        meeting = Meeting(rank=1, ranks=2)
        meeting.tell("place", "here")
        main.kill()
        main.wait()
        for ask in (lambda: meeting.exchange(None), lambda: meeting.told("place")):
            with pytest.raises(GroupError, match="rank 0, in whose process") as caught:
                ask()
            assert caught.value.reported == launched  # the process that started the ranks says more
