"""Run a verb that measures on one process or on several ranks; imports no torch.

The verbs take `--num-processes`, or join the processes that `srun` or `torchrun` has started.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from medunifier_cli.distributed import group, launch
from medunifier_cli.errors import USAGE, MuError
from medunifier_cli.run.processors import divide_new_threads
from medunifier_cli.terminal.options import PROCESSES
from medunifier_cli.terminal.say import keep_any_letter

ENCODED, WRITTEN, SAMPLED = 50_000, 1_000, 1_000
"""With this many samples or more, a verb that encodes images, writes reports or draws images uses every GPU.
One card is done with fewer in about a minute, in which further processes hardly start. Not measured."""
Verb = TypeVar("Verb", bound=Callable[..., Any])


def _refuses_nothing(**_: Any) -> None:
    """Stands for the `check` of a verb all of whose options go together."""


def on_ranks(
    large: int, count: Callable[..., int], check: Callable[..., None] = _refuses_nothing
) -> Callable[[Verb], Verb]:
    """Give a click command the option `--num-processes`, and have its function share its work over ranks.

    A verb with `--sbatch` has `job_options` above it, and prints its script in this process.

    Args:
        large: with this many samples or more every GPU of the machine is used.
        count: of the command's options: with how many samples it computes; 0 for nothing to share.
        check: of the same: raises click.UsageError for what does not go together, before any rank starts.
            Ranks have no command line that could tell what was typed.
    """

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def start(num_processes: int | None, **options: Any) -> None:
            joined = group.joined_group()
            leads = not joined or group.joined_rank() == 0
            try:
                check(**options)
            except click.UsageError:
                if leads:
                    raise
                return
            samples = 0 if options.get("sbatch") else _counted(count, options)
            if not samples:
                # nothing to share, or a mistake that the main rank reports
                if leads:
                    verb(**options)
                return
            alone = not (joined or num_processes) and samples < large
            divide_new_threads(num_processes or 1)
            arguments = (verb.__module__, verb.__name__, options)
            launch.in_ranks(joined, num_processes or 0, int(alone), _on_rank, *arguments)

        option = click.option(
            "--num-processes", type=PROCESSES,
            help="Processes on this machine that share the work (default: one per GPU where there is much to "
            "do, else one); no result depends on it.",
        )  # fmt: skip
        return option(start)  # type: ignore[return-value]

    return decorate


def _counted(count: Callable[..., int], options: dict[str, Any]) -> int:
    try:
        return count(**options)
    except MuError:  # which the verb says itself
        return 0


def _on_rank(module: str, name: str, options: dict[str, Any]) -> None:
    """Run a verb as one rank of several, or in a process of its own.

    Args:
        module, name: of the click command.
        options: its parameters.
    """
    command: click.Command = getattr(importlib.import_module(module), name)
    assert command.callback is not None
    verb = functools.partial(inspect.unwrap(command.callback), **options)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        verb()
        return
    from medunifier_cli.evaluate.shared.sharing import on_all_ranks

    keep_any_letter()
    try:
        on_all_ranks(verb)
    except click.UsageError as error:  # a rank has no command line around it that would say so
        mistake = MuError(error.format_message())
        mistake.exit_code = USAGE
        raise mistake from None
