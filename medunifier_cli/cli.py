"""The command line `mu`: a click group that finds the verbs and turns errors into one line and an exit code.

Each verb is one file of `commands/`, imported only when it is called: `mu --help` reads the help lines from
the source instead, so that no verb can slow it down.
"""

from __future__ import annotations

import ast
import difflib
import errno
import importlib
import resource
import sys
import time
from pathlib import Path

import click

from medunifier_cli import __version__
from medunifier_cli.errors import explain, one_line, traceback_text
from medunifier_cli.files import read_text
from medunifier_cli.options.shared import talk_options
from medunifier_cli.run.processors import limit_new_threads
from medunifier_cli.stopping import as_stop, installed
from medunifier_cli.terminal.first_line import announced
from medunifier_cli.terminal.output import TALK, VERBOSE
from medunifier_cli.terminal.progress import duration
from medunifier_cli.terminal.say import keep_any_letter, say

COMMANDS = Path(__file__).parent / "commands"

VERBS = (
    "prepare", "pretrain", "fit-prior", "finetune", "retrieve", "zeroshot", "report", "synthesize",
    "score", "check", "runs", "show", "recipes", "export", "predict", "embed",
)  # fmt: skip
"""In the order of `mu --help`, which is that of the work; a verb without a file is not listed."""

TRAINING = ("pretrain", "fit-prior", "finetune")
"""Ctrl-C ends these as a scheduler's signals end every verb: with 75, as the same command resumes."""

MODEL_VERBS = ("retrieve", "zeroshot", "report", "synthesize", "predict", "embed")
"""These compute with a model in one process, and say how many threads they have where a limit is set."""

LOADING = {
    **dict.fromkeys(MODEL_VERBS, "loading the model ..."),
    **dict.fromkeys(TRAINING, "loading PyTorch, the recipe and the data ..."),
}
"""What a verb says while PyTorch is imported; others say that they load PyTorch."""

FOLDERS = ("", "overview")
"""Folders of `commands/` that hold verbs."""

DEBUG_KEY = "medunifier_cli.debug"


def _remember_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG_KEY] = ctx.meta.get(DEBUG_KEY, False) or value


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )


def source_of(verb: str) -> Path:
    """The file of a verb; where there is none, the path that it would have."""
    name = f"{verb.replace('-', '_')}.py"
    paths = [COMMANDS / folder / name for folder in FOLDERS]
    return next((path for path in paths if path.is_file()), paths[0])


def _module(source: Path) -> str:
    """Dotted name of the module of a verb."""
    return ".".join(["medunifier_cli.commands", *source.relative_to(COMMANDS).with_suffix("").parts])


def help_line(source: Path) -> str:
    """First paragraph of the docstring of the command in `source`, read without importing it."""
    for node in ast.parse(read_text(source)).body:
        if isinstance(node, ast.FunctionDef) and node.name == source.stem:
            return " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return ""


class Verbs(click.Group):
    """A group whose commands are the files of `commands/`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if source_of(verb).is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        request = installed()
        if request is not None and not ctx.resilient_parsing:
            request.training = cmd_name in TRAINING
            if not request.training:  # training counts its ranks first, see `train.accelerator`
                share = limit_new_threads()
                if share is not None and cmd_name in MODEL_VERBS:
                    say(f"{share}; OMP_NUM_THREADS sets another number")
        source = source_of(cmd_name)
        command: click.Command = getattr(importlib.import_module(_module(source)), source.stem)
        command.name = cmd_name
        if not any(param.name == "debug" for param in command.params):
            command.params += [*talk_options(), _debug_option()]
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verbs = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in verbs:
            nearest = difflib.get_close_matches(args[0], verbs, n=1)
            hint = f"did you mean `mu {nearest[0]}`?" if nearest else f"available: {', '.join(verbs)}"
            ctx.fail(f"no verb `{args[0]}`; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(verb, help_line(source_of(verb))) for verb in self.list_commands(ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.ClickException as error:
            raise _clean(error) from None

    def invoke(self, ctx: click.Context) -> object:
        keep_any_letter()
        try:
            return self._invoke(ctx)
        except click.ClickException as error:
            raise _clean(error) from None  # click prints it itself, and gives a usage error exit code 2
        except (click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # a closed pipe, as with `mu ... | head`: click exits without a message
            if ctx.meta.get(DEBUG_KEY):
                click.echo(traceback_text(error), err=True, nl=False)
            lines, code = explain(as_stop(error))
            for line in lines:
                click.echo(f"mu: {line}", err=True)
            ctx.exit(code)

    def _invoke(self, ctx: click.Context) -> object:
        """Call the verb; say what is loaded, and with `-v` at the end what it took."""
        started = time.monotonic()
        with announced(lambda: LOADING.get(ctx.invoked_subcommand or "", "loading PyTorch ...")):
            result = super().invoke(ctx)
        if ctx.meta.get(TALK) == VERBOSE:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kiB, of this process
            took = duration(time.monotonic() - started)
            say(f"{ctx.invoked_subcommand} took {took} (minutes:seconds), {peak:.2f} GiB at most")
        return result


def _clean(error: click.ClickException) -> click.ClickException:
    """The error with a message of one line: it quotes what was typed, which a script may have made up."""
    if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
        return error  # click 8.2 and later show the help of a verb by this error
    message = one_line(error.format_message())
    return (
        click.UsageError(message, error.ctx)
        if isinstance(error, click.UsageError)
        else click.ClickException(message)
    )


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        python = ".".join(map(str, sys.version_info[:3]))
        click.echo(f"mu {__version__} (Python {python})")
        ctx.exit()


@click.group(
    cls=Verbs,
    params=[*talk_options(), _debug_option()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version."
)
def mu() -> None:
    """MedUnifier: radiographs and reports in; retrieval, labels, reports and synthetic radiographs out.

    Data are read from $MU_DATA (default: data/), runs are written to $MU_RUNS (default: runs/). A run that is
    stopped by a signal saves a checkpoint and exits with 75; the same command resumes from it.
    """
