"""Do the work of one rank of several, and end it so that the other ranks hear how."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from medunifier_cli.errors import MuError, Stopped, explain


def run_rank(work: Callable[..., None], arguments: Sequence[Any]) -> NoReturn:
    """Call `work(*arguments)` and end this process with the exit code that the command line would give.

    One line for the whole group says why it failed: of the rank that failed or, where that cannot speak any
    more, of one that notices.
    """
    # not at the top, as it imports torch: `mu pretrain --help` imports this file
    from medunifier_cli.distributed import world

    lines: list[str] = []
    code, agreed = 0, True
    try:
        work(*arguments)
    except BaseException as error:
        lines, code = explain(error)
        agreed = isinstance(error, MuError) and (error.of_all_ranks or isinstance(error, Stopped))
        if not agreed and world.why_lost(error):
            lines, code = [], 1  # not of this rank: the one to blame has been named
        # all ranks stop or are interrupted together, and one line is enough; an error may be of one rank
        if not world.is_main():
            lines = [f"rank {world.rank()}: {line}" for line in lines] if code == 1 else []
        if "--debug" in sys.argv:
            traceback.print_exc()
    for line in lines:
        print(f"mu: {line}", file=sys.stderr, flush=True)
    # the work is done, or stopped with a checkpoint saved, or all know why not: they come here together
    if agreed:
        world.leave()
        sys.exit(code)
    world.fail(code)
    sys.stdout.flush()
    os._exit(code)  # a failed rank must not wait for the others in a collective operation
