"""The table of a campaign: printed, and kept in docs/reliability.md."""

from __future__ import annotations

import argparse

from tests.campaign.record import Book, failures, table

PROMISES: dict[str, str] = {}


def show(book: Book, given: argparse.Namespace) -> bool:
    outcomes = book.outcomes()
    failed = failures(outcomes)
    for line in failed:
        print(line)
    print(table(outcomes, PROMISES))
    return bool(failed)
