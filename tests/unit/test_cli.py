"""The command line frame: what a user sees of help, mistakes and interruptions."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from medunifier_cli import __version__, cli
from medunifier_cli.errors import MuError, Stopped

VERB = '''
import click
import os

@click.command()
@click.argument("what")
def {name}(what):
    """Does {name} things to
    what it is given.

    More than anyone reads in a list.
    """
    from tests.unit import test_cli
    test_cli.happen(what)
'''


def happen(what: str) -> None:
    """Raise what the test asked for, from within a verb."""
    match what:
        case "mistake":
            raise MuError("no run found")
        case "two":
            raise MuError("a.yaml:1: one\na.yaml:2: two")
        case "stopped":
            raise Stopped("checkpoint saved")
        case "interrupt":
            raise KeyboardInterrupt
        case "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/disk/shard.tar")
        case "denied":
            raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/x")
        case "unforeseen":
            raise KeyError("large left pleural effusion")
        case "fine":
            print("out")


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A commands folder with the two verbs `score` and `fit-prior`, in a package of its own."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in ("score", "fit_prior"):
        (folder / f"{name}.py").write_text(VERB.format(name=name))
    monkeypatch.setattr(cli, "COMMANDS", folder)
    import medunifier_cli.commands

    monkeypatch.setattr(medunifier_cli.commands, "__path__", [str(folder)])
    for name in ("score", "fit_prior"):
        monkeypatch.delitem(sys.modules, f"medunifier_cli.commands.{name}", raising=False)
    yield folder
    for name in ("score", "fit_prior"):
        sys.modules.pop(f"medunifier_cli.commands.{name}", None)


def call(*args: str) -> Result:
    return CliRunner().invoke(cli.mu, list(args))


def test_help_lists_existing_verbs_in_data_flow_order_without_importing_them(verbs: Path) -> None:
    (verbs / "score.py").write_text((verbs / "score.py").read_text() + "\nraise SystemExit(9)\n")
    result = call("--help")
    assert result.exit_code == 0
    listed = [line.split() for line in result.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert [words[0] for words in listed] == ["fit-prior", "score"]
    assert " ".join(listed[1][1:]) == "Does score things to what it is given."


def test_verb_is_named_with_a_dash(verbs: Path) -> None:
    assert call("fit-prior", "fine").stdout == "out\n"
    assert call("fit_prior", "fine").exit_code == 2


@pytest.mark.parametrize(
    ("what", "code", "lines"),
    [
        ("mistake", 1, ["mu: no run found"]),
        ("two", 1, ["mu: a.yaml:1: one; a.yaml:2: two"]),
        ("stopped", 75, ["mu: checkpoint saved"]),
        ("interrupt", 130, ["mu: interrupted"]),
        (
            "full",
            1,
            ["mu: no space left on the disk: /disk/shard.tar; free some and run the same command again"],
        ),
        ("denied", 1, ["mu: no permission: /elsewhere/x; choose another folder or change its rights"]),
        ("fine", 0, []),
    ],
)
def test_errors_are_lines_with_an_exit_code(verbs: Path, what: str, code: int, lines: list[str]) -> None:
    result = call("score", what)
    assert (result.exit_code, result.stderr.splitlines()) == (code, lines)


def test_unforeseen_error_names_its_type_and_place_and_quotes_no_data(verbs: Path) -> None:
    result = call("score", "unforeseen")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "KeyError" in line
    assert "--debug" in line
    assert "effusion" not in line


@pytest.mark.parametrize("args", [("--debug", "score", "mistake"), ("score", "--debug", "mistake")])
def test_debug_shows_the_traceback_before_or_after_the_verb(verbs: Path, args: tuple[str, ...]) -> None:
    result = call(*args)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == "mu: no run found"


def test_unknown_verb_offers_the_nearest(verbs: Path) -> None:
    result = call("scroe")
    assert result.exit_code == 2
    assert "did you mean `mu score`?" in result.stderr


def test_usage_mistake_is_exit_code_2(verbs: Path) -> None:
    assert call("score").exit_code == 2


def test_version() -> None:
    assert __version__ in call("--version").stdout


def test_reader_that_goes_away_leaves_no_traceback() -> None:
    shell = f"'{sys.executable}' -m medunifier_cli --help | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: mu")
    assert done.stderr == ""


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_start_imports_neither_torch_nor_anything_else_that_is_slow(args: list[str]) -> None:
    heavy = ("torch", "numpy", "transformers", "timm", "accelerate", "PIL", "h5py", "pydicom", "webdataset")
    script = (
        "import sys\n"
        "from medunifier_cli.cli import mu\n"
        f"mu({args!r}, prog_name='mu', standalone_mode=False)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", cli.mu.list_commands(None))
def test_help_of_each_verb_does_not_import_torch(verb: str) -> None:
    script = (
        "import sys\n"
        "from medunifier_cli.cli import mu\n"
        f"mu([{verb!r}, '--help'], prog_name='mu', standalone_mode=False)\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"Usage: mu {verb}" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_each_option_begins_with_a_noun_or_an_imperative(verb: str) -> None:
    """As far as that can be told: not with a preposition, a number or an "only" that has no verb."""
    command = cli.mu.get_command(click.Context(cli.mu), verb)
    assert command is not None
    helps = [param.help or "" for param in command.params if isinstance(param, click.Option)]
    wrong = ("Of ", "Only ", "Over ", "In ", "By ", "From ", "For ", "At ")
    assert [text for text in helps if text.startswith(wrong) or not text[:1].isupper()] == []


@pytest.mark.parametrize(
    "args",
    [
        ["sco\x1b[31mre"],
        ["--\x1b[31m"],
        ["score", "--for\x1b[31mmat", "x"],
        ["score", "--format", "\x1b[31m\n2"],
        ["score", "--seed", "\x1b[31m"],
        ["score", "--seed", "9" * 5000],
        ["score", "x" * 100_000 + ".jsonl"],
    ],
)
def test_usage_errors_are_clean_and_short(args: list[str]) -> None:
    result = CliRunner().invoke(cli.mu, args)
    assert result.exit_code == 2
    *_, line = result.stderr.splitlines()
    assert "\x1b" not in result.stderr
    assert line.startswith("Error: ")
    assert len(line) < 300
