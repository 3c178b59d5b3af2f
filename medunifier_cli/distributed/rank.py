"""Do the work of one rank of several, and end it so that the other ranks hear how."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from medunifier_cli.errors import explain


def run_rank(work: Callable[..., None], arguments: Sequence[Any]) -> NoReturn:
    """Call `work(*arguments)` and end this process with the exit code that the command line would give.

    One line for the whole group says why it failed: of the rank that failed or, where that cannot speak any
    more, of one that notices.
    """
    from medunifier_cli.distributed import world

    lines: list[str] = []
    code = 0
    try:
        work(*arguments)
    except BaseException as error:
        lines, code = explain(error)
        # asked first, as rank 0's thread may still wait for its next look at the connections
        if world.why_lost(error):
            lines, code = [], 1
        # all ranks stop or are interrupted together, and one line is enough; an error may be of one rank
        if not world.is_main() and code != 1:
            lines = []
        if "--debug" in sys.argv:
            traceback.print_exc()
    for line in lines:
        print(f"mu: {line}", file=sys.stderr, flush=True)
    # 75: stopped with a checkpoint saved, and all ranks come to this point together
    if code in (0, 75):
        world.leave()
        sys.exit(code)
    world.fail(code)
    sys.stdout.flush()
    os._exit(code)  # a failed rank must not wait for the others in a collective operation
