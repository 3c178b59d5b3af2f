"""Entry point of `mu` and of `python -m medunifier_cli`."""

from __future__ import annotations

import sys

from medunifier_cli.run.processors import wait_passively
from medunifier_cli.stopping import StopRequest, as_stop, ignore


def main() -> None:
    """Console script; never returns, as click ends the process with the exit code."""
    # before the imports of the command line and of what it calls, which take seconds
    request = StopRequest()
    request.install()
    wait_passively()
    try:
        from medunifier_cli.cli import mu

        mu(prog_name="mu")
    except KeyboardInterrupt as error:  # before the verb was called; later ones are handled there
        from medunifier_cli.errors import explain
        from medunifier_cli.terminal.say import say

        lines, code = explain(as_stop(error))
        for line in lines:
            say(line, always=True)
        sys.exit(code)
    finally:
        if request:  # the exit code is decided
            ignore()


if __name__ == "__main__":
    main()
