"""Options that several verbs have, each declared here alone: its meaning, its completion, its old names.

An option that acts outside of the verb's own function, such as `--format`, is no parameter of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from medunifier_cli.cluster.options import JobOption
from medunifier_cli.errors import MuError
from medunifier_cli.options import complete
from medunifier_cli.terminal.options import Whole
from medunifier_cli.terminal.output import FORMAT, FORMATS, QUIET, TALK, VERBOSE, variable
from medunifier_cli.terminal.say import say

Verb = TypeVar("Verb", bound=Callable[..., Any])
CUDA = "CUDA_VISIBLE_DEVICES"
"""Variable that says which GPUs this process and those that it starts may see."""


def hinting(hint: Callable[[click.Context], str]) -> type[click.Command]:
    """The class of a verb that says what was meant by an argument which it does not take.

    Args:
        hint: of the context, whose `args` are those that were not expected; empty for none.
    """

    class Hinting(click.Command):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            ctx.allow_extra_args = True  # as click would refuse them without a hint
            rest = super().parse_args(ctx, args)
            if rest and not ctx.resilient_parsing:
                said = f"got unexpected extra argument ({' '.join(rest)})"
                raise click.UsageError("; ".join(filter(None, [said, hint(ctx)])), ctx)
            return rest

    return Hinting


def recipe_argument(required: bool = True) -> Callable[[Verb], Verb]:
    """RECIPE: a file, or the name of a shipped one."""
    return click.argument("recipe", required=required, shell_complete=complete.recipes)


def overrides_option(verb: Verb) -> Verb:
    """`-o KEY=VALUE` for a recipe."""
    return click.option(
        "-o", "overrides", multiple=True, metavar="KEY=VALUE", shell_complete=complete.keys,
        help="Change one recipe value.",
    )(verb)  # fmt: skip


def run_option(
    default: str = "the newest pre-trained one", parameter: str = "name"
) -> Callable[[Verb], Verb]:
    """`--run`: always the run that is used."""
    return click.option(
        "--run", parameter, default="", metavar="NAME", shell_complete=complete.runs,
        help=f"Run to use, by name or folder; by default {default}.",
    )  # fmt: skip


def name_option(default: str) -> Callable[[Verb], Verb]:
    """`--name`: always the run that is made."""
    return click.option("--name", default="", help=f"Name of the new run; by default {default}.")


def data_option(text: str, parameter: str = "dataset") -> Callable[[Verb], Verb]:
    """`--data`: a prepared data set."""
    return click.option(
        "--data", parameter, default="", metavar="NAME", shell_complete=complete.prepared, help=text
    )


def format_option(verb: Verb) -> Verb:
    """`--format` of what the verb prints; `terminal.output.form` tells which it is."""
    return click.option(
        "--format", type=click.Choice(FORMATS), default="text", show_default=True, expose_value=False,
        is_eager=True, callback=_set_format, help="Format of what is printed.",
    )(verb)  # fmt: skip


def _set_format(ctx: click.Context, _param: click.Parameter, value: str) -> None:
    choose_format(ctx, value)


def choose_format(ctx: click.Context, value: str) -> None:
    """Print in this format until the verb has ended, in this process and in those that it starts."""
    if not ctx.resilient_parsing:
        _set(ctx, FORMAT, value)


def old_format_flag(flag: str, value: str) -> Callable[[Verb], Verb]:
    """The flag that asked for a format before there was `--format`."""

    def choose(ctx: click.Context, _param: click.Parameter, given: bool) -> None:
        if given:
            note_old(flag, f"--format {value}")
            choose_format(ctx, value)

    return click.option(
        flag, is_flag=True, hidden=True, expose_value=False, callback=choose,
        help=f"Old spelling of --format {value}.",
    )  # fmt: skip


def _set(ctx: click.Context, name: str, value: str) -> None:
    """Set a variable of the environment until the command line has ended."""
    # of the root: where the verb's own options are wrong, its context is left without being closed
    ctx.find_root().with_resource(variable(name, value))


def note_old(old: str, new: str) -> None:
    """Say that an option is spelled otherwise now."""
    say(f"{old} is now called {new}; the old spelling still works")


def device_option(verb: Verb) -> Verb:
    """`--device`: which processor computes, for this process and those that it starts."""
    return click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:N]", expose_value=False,
        callback=_choose_device,
        help="Device to compute on; auto takes the GPUs if there are any, cuda:1 only the second one.",
    )(verb)  # fmt: skip


def _choose_device(ctx: click.Context, param: click.Parameter, value: str) -> None:
    kind, _, number = value.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (":" in value and (kind != "cuda" or not number.isdecimal())):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda or cuda:0", ctx, param)
    if kind == "auto" or ctx.resilient_parsing:
        return
    if kind == "cpu":
        _set(ctx, CUDA, "")
        return
    if number:
        visible = os.environ.get(CUDA)
        chosen = visible.split(",") if visible else [str(index) for index in range(int(number) + 1)]
        if int(number) >= len(chosen):
            raise MuError(f"--device {value}: only {len(chosen)} GPUs are visible ({CUDA}={visible})")
        _set(ctx, CUDA, chosen[int(number)])
    import torch  # the verb needs it anyway, as a processor is chosen for what is computed with it

    if not torch.cuda.is_available():
        raise MuError(f"--device {value}: PyTorch finds no such GPU here; leave the option out, or say cpu")


def batch_size_option(help_of_default: str) -> Callable[[Verb], Verb]:
    """`--batch-size` of forward passes."""
    return click.option(
        "--batch-size", "batch", type=Whole(1, 100_000), metavar="N",
        help=f"Images in a forward pass; affects only speed and memory. By default {help_of_default}.",
    )  # fmt: skip


def likeness_option(verb: Verb) -> Verb:
    """`--no-likeness` of verbs that answer about files, as the parameter `likeness`."""
    return click.option(
        "--likeness/--no-likeness", default=True, show_default=True,
        help="Compare each file with films that the model was trained on, and name those unlike them; the "
        "first call of a run looks at up to 3,000 films of its data.",
    )(verb)  # fmt: skip


def talk_options() -> list[click.Option]:
    """`-v` and `-q`, which every verb has."""
    helps = {
        VERBOSE: "Print more: checkpoint, device, time and memory.",
        QUIET: "Leave out progress and notes; warnings, errors and results remain.",
    }
    own: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True, "callback": _set_talk}
    return [click.Option([f"-{name[0]}", f"--{name}"], help=text, **own) for name, text in helps.items()]


def _set_talk(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    if ctx.meta.get(TALK, param.name) != param.name:
        raise click.UsageError("-q and -v exclude each other", ctx)
    ctx.meta[TALK] = param.name
    _set(ctx, TALK, str(param.name))


def given(ctx: click.Context) -> dict[str, str]:
    """What was typed: parameter -> how it is written, `--top` or `DATASET`."""
    typed = {}
    for param in ctx.command.params:
        if param.name and ctx.get_parameter_source(param.name) == ParameterSource.COMMANDLINE:
            is_argument = isinstance(param, click.Argument)
            typed[param.name] = param.human_readable_name if is_argument else max(param.opts, key=len)
    return typed


def refuse_unused(used: Collection[str], why: str) -> None:
    """Refuse what was typed and would be ignored.

    Args:
        used: parameters of the running verb that have an effect; those that every verb has need not be named.
        why: the end of the sentence that begins with the option.

    Raises:
        click.UsageError: names one such option.
    """
    ctx = click.get_current_context()
    hidden = {
        param.name for param in ctx.command.params if not param.expose_value or isinstance(param, JobOption)
    }
    for name, written in given(ctx).items():
        if name not in used and name not in hidden:
            raise click.UsageError(f"{written} {why}")


def refuse(names: Collection[str], why: str) -> None:
    """Refuse these parameters, if they were typed: `why` ends the sentence that begins with the option.

    Raises:
        click.UsageError: names one of them.
    """
    for name, written in given(click.get_current_context()).items():
        if name in names:
            raise click.UsageError(f"{written} {why}")
