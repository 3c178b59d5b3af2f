"""`mu` in this process, with a signal sent to it at a place in the product that a test names."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
import signal
import time
from typing import Any

import pytest
from click.testing import CliRunner

import medunifier_cli
from medunifier_cli import stopping
from medunifier_cli.cli import mu
from medunifier_cli.stopping import handled


def stopped_at(
    monkeypatch: pytest.MonkeyPatch, place: str, number: signal.Signals, *arguments: object
) -> tuple[int, str]:
    """Run `mu ARGUMENTS`; the signal comes when `place`, a dotted name, is called: exit code, and all output.

    The place is not left by itself: whatever ends the command has to come from the signal.
    """
    import_all()
    monkeypatch.setattr(stopping, "LIMIT", 600.0)  # after it, the test's own process would be ended

    def signalled(*_: Any, **__: Any) -> None:
        reached.append(place)
        os.kill(os.getpid(), number)
        time.sleep(600)

    reached: list[str] = []
    with handled() as request, monkeypatch.context() as patch:
        # installed for the time of this block, as `mu` itself does it first of all
        patch.setattr(place, signalled)
        done = CliRunner().invoke(mu, [str(argument) for argument in arguments])
        assert reached == [place], done.output
        assert request.signal == number.name
    return done.exit_code, done.output


@functools.cache
def import_all() -> None:
    """Import every module of the package: one that is first imported under a patch would keep it."""
    for module in pkgutil.walk_packages(medunifier_cli.__path__, "medunifier_cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
