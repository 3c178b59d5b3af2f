"""Numbers on the command line: every option has a range, and what is out of it costs no time."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from medunifier_cli import cli
from medunifier_cli.terminal.options import Number, Whole

OUT_OF_RANGE = [
    ("synthesize", "--n", "1000000000000000"),
    ("synthesize", "--n", "0"),
    ("synthesize", "--seed", "18446744073709551616"),
    ("synthesize", "--guidance", "nan"),
    ("synthesize", "--temperature", "inf"),
    ("synthesize", "--top-p", "0"),
    ("synthesize", "--batch", "1000000000"),
    ("report", "--beams", "100000"),
    ("report", "--length-penalty", "-1e30"),
    ("report", "--temperature", "nan"),
    ("report", "--repetition-penalty", "1e300"),
    ("report", "--max-tokens", "1000000000"),
    ("retrieve", "--top", "1000000000"),
    ("prepare", "--workers", "1000000"),
    ("pretrain", "--num-processes", "1000000"),
    ("score", "--seed", "-1"),
]


@pytest.mark.parametrize(("verb", "option", "value"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_a_usage_error(verb: str, option: str, value: str) -> None:
    result = CliRunner().invoke(cli.mu, [verb, option, value])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


@pytest.mark.parametrize(
    ("verb", "option", "said"),
    [("prepare", "--size", "'abc' is not a whole number"), ("report", "--top-p", "'abc' is not a number")],
)
def test_a_word_for_a_number_is_said_in_plain_words(verb: str, option: str, said: str) -> None:
    result = CliRunner().invoke(cli.mu, [verb, option, "abc"])
    assert result.exit_code == 2
    assert said in result.stderr


def test_every_option_that_takes_a_number_has_both_ends() -> None:
    context = click.Context(cli.mu)
    for verb in cli.mu.list_commands(context):
        command = cli.mu.get_command(context, verb)
        assert command is not None
        for param in command.params:
            kind = param.type
            assert kind not in (click.INT, click.FLOAT), f"{verb} {param.name}"
            if isinstance(kind, click.IntRange | click.FloatRange):
                assert kind.min is not None, f"{verb} {param.name}"
                assert kind.max is not None, f"{verb} {param.name}"


def test_the_help_names_a_bound_that_a_user_may_meet() -> None:
    @click.command()
    @click.option("--seed", type=Whole(0))
    @click.option("--n", type=Whole(1, 10))
    @click.option("--t", type=Number(0, 1))
    def verb(seed: int, n: int, t: float) -> None: ...

    text = CliRunner().invoke(verb, ["--help"]).output
    assert "[x>=0]" in text
    assert "[1<=x<=10]" in text
    assert "[0<=x<=1]" in text
