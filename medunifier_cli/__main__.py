"""Entry point of `mu` and of `python -m medunifier_cli`."""

from __future__ import annotations

from medunifier_cli.cli import mu


def main() -> None:
    """Console script; never returns, as click ends the process with the exit code."""
    mu(prog_name="mu")


if __name__ == "__main__":
    main()
