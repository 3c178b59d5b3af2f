"""The options by which a verb prints itself as a SLURM job: `--sbatch` and what goes with it."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from medunifier_cli.cluster.script import WARNING_SECONDS, Job, Wishes, script
from medunifier_cli.roots import data_root, runs_root
from medunifier_cli.terminal.options import Whole

Verb = TypeVar("Verb", bound=Callable[..., Any])

EVALUATION_CORES = 4
"""Of a process that evaluates: one computes, the others decode images."""
TIME = re.compile(
    r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?", flags=re.ASCII
)  # fmt: skip


class JobOption(click.Option):
    """An option about the job, which is left out of the command that the job runs."""


class Word(click.ParamType["str"]):
    """A name of the cluster's, or an address: one word without control characters."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not text or not text.isprintable() or " " in text or text.startswith("-"):
            self.fail(f"{text!r} is not one word", param, ctx)
        return text


class Time(click.ParamType["str"]):
    """A time limit as sbatch takes it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            seconds_of(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time such as 90, 12:00:00 or 2-12:00:00", param, ctx)
        return str(value)


def seconds_of(time: str) -> int:
    """Seconds of a time limit: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S, as sbatch reads it.

    Raises:
        ValueError: it is none.
    """
    match = TIME.fullmatch(time)
    if match is None:
        raise ValueError(time)
    days, a, b, c = (int(match[name] or 0) for name in ("days", "a", "b", "c"))
    if match["days"] is not None:
        return ((24 * days + a) * 60 + b) * 60 + c
    return (60 * a + b) * 60 + c if match["c"] else 60 * a + b


_WISHES = (
    click.option(
        "--sbatch", cls=JobOption, is_flag=True, help="Print a SLURM script for this command and exit."
    ),
    click.option("--partition", cls=JobOption, type=Word(), help="With --sbatch: partition of the job."),
    click.option("--account", cls=JobOption, type=Word(), help="With --sbatch: account of the job."),
    click.option(
        "--time", cls=JobOption, type=Time(), help=f"With --sbatch: time limit.  [default: {Wishes.time}]"
    ),
    click.option(
        "--mail", cls=JobOption, type=Word(), metavar="ADDRESS",
        help="With --sbatch: whom SLURM writes to when the job ends, fails or is queued again.",
    ),
)  # fmt: skip
_REQUEUES = click.option(
    "--requeues", cls=JobOption, type=Whole(0, 10_000), metavar="N",
    help=f"With --sbatch: how often the job may be queued again.  [default: {Wishes.requeues}]",
)  # fmt: skip
_NODES = click.option(
    "--nodes", cls=JobOption, type=Whole(1, 1024),
    help="With --sbatch: nodes, each with as many GPUs as --num-processes or the recipe says.",
)  # fmt: skip
_PARTS = click.option(
    "--parts", cls=JobOption, type=Whole(1, 10_000), metavar="N",
    help="With --sbatch: a job array of N tasks, each of which makes one part.",
)  # fmt: skip


@dataclass(frozen=True)
class JobOptions:
    """Values of the options that `job_options` adds; there are none without `--sbatch`."""

    words: tuple[str, ...]
    """Of the command line, after `mu`, that the job runs."""
    name: str
    """Of the job, unless the verb knows a better one."""
    wishes: Wishes
    processes: int = 0
    """Of `--num-processes`; 0 where it is not given."""
    nodes: int = 1
    parts: int = 0
    fresh: bool = False

    def show(
        self, name: str = "", *, processes: int = 1, cores: int = EVALUATION_CORES, gpus: bool = True,
        resumes: bool = False,
    ) -> None:  # fmt: skip
        """Print the script.

        Args:
            name: of the job.
            processes: on each node, unless `--num-processes` says so.
            cores: of each process.
            gpus: each process has one.
            resumes: the command resumes where it was stopped.

        Raises:
            click.UsageError: the time limit leaves nothing before the warning.
        """
        if resumes and seconds_of(self.wishes.time) <= WARNING_SECONDS:
            raise click.UsageError(
                f"--time {self.wishes.time} leaves no time to work: SLURM warns {WARNING_SECONDS} s before "
                "the limit, so that a checkpoint can be saved; give the job more"
            )
        job = Job(
            command=(*this_mu(), *self.words), name=name or self.name, cores=cores, gpus=gpus,
            processes=self.processes or processes, nodes=self.nodes, parts=self.parts, resumes=resumes,
            fresh=self.fresh, folder=os.getcwd(), variables=places(), wishes=self.wishes,
        )  # fmt: skip
        click.echo(script(job), nl=False)


def job_options(*, resumes: bool = False, nodes: bool = False, parts: bool = False) -> Callable[[Verb], Verb]:
    """Give a click command `--sbatch` and what goes with it, as one argument `sbatch`: JobOptions or None.

    Args:
        resumes: adds `--requeues`.
        nodes: adds `--nodes`: the verb joins the processes that `srun` starts.
        parts: adds `--parts`: the verb has `--part I/N`.
    """
    extra = [option for option, asked in ((_REQUEUES, resumes), (_NODES, nodes), (_PARTS, parts)) if asked]

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def with_job(**values: Any) -> Any:
            names = {field.name for field in fields(Wishes)} | {"nodes", "parts"}
            typed = {name: values.pop(name) for name in names & set(values)}
            given = {name: value for name, value in typed.items() if value is not None}
            if not values.pop("sbatch"):
                if given:
                    raise click.UsageError(f"--{min(given)} is for --sbatch, which prints a script; add it")
                return verb(sbatch=None, **values)
            return verb(sbatch=_job_options(given, values), **values)

        for option in reversed([*_WISHES, *extra]):
            with_job = option(with_job)
        return with_job  # type: ignore[return-value]

    return decorate


def _job_options(given: dict[str, Any], values: dict[str, Any]) -> JobOptions:
    command = click.get_current_context().command
    subject = next((str(values[key]) for key in ("name", "dataset") if isinstance(values.get(key), str)), "")
    subject = "".join(c for c in os.path.basename(os.path.normpath(subject)) if c.isprintable()).strip(". ")
    return JobOptions(
        words=words_of_the_job(sys.argv[1:], command),
        name="-".join(filter(None, (command.name, subject[:100]))),
        nodes=given.pop("nodes", 1),
        parts=given.pop("parts", 0),
        wishes=Wishes(**given),
        processes=values.get("num_processes") or 0,
        fresh=bool(values.get("fresh")),
    )


def words_of_the_job(words: Sequence[str], command: click.Command) -> tuple[str, ...]:
    """The words of a command line without the options about the job, and without `--fresh`.

    Args:
        words: after `mu`; click has accepted them.
        command: the verb.
    """
    options = {name: param for param in command.params for name in (*param.opts, *param.secondary_opts)}
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return (*kept, word, *rest)
        option, taken = options.get(word.partition("=")[0]), [word]
        if isinstance(option, click.Option) and "=" not in word and _takes_value(option, rest):
            taken.append(rest.pop(0))
        if not (isinstance(option, JobOption) or (option is not None and option.name == "fresh")):
            kept += taken
    return tuple(kept)


def _takes_value(option: click.Option, rest: Sequence[str]) -> bool:
    """Whether the next word belongs to an option."""
    if option.is_flag or option.count or not rest:
        return False
    # as click decides for an option that may stand alone, such as `--reconstruct`
    alone = getattr(option, "_flag_needs_value", False) and rest[0][:1] == "-" and len(rest[0]) > 1
    return not alone


def this_mu() -> tuple[str, ...]:
    """The command that starts this `mu` from any shell, without its environment being active."""
    typed = os.path.abspath(sys.argv[0])
    if os.path.basename(typed) == "mu" and os.access(typed, os.X_OK):
        return (typed,)
    return (sys.executable, "-m", "medunifier_cli")


def places() -> dict[str, str]:
    """Variables that say where data, runs and downloaded weights are, as absolute paths."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    hub = {"HF_HOME": os.environ.get("HF_HOME") or str(cache / "huggingface")}
    if os.environ.get("HF_HUB_CACHE"):  # it precedes the other
        hub["HF_HUB_CACHE"] = os.environ["HF_HUB_CACHE"]
    paths = {"MU_DATA": str(data_root()), "MU_RUNS": str(runs_root())} | {
        name: os.path.expandvars(os.path.expanduser(path)) for name, path in hub.items()
    }
    return {name: os.path.abspath(path) for name, path in paths.items()}
