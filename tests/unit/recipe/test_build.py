"""The example in the documentation of `recipe.build`."""

from __future__ import annotations

import doctest

from medunifier_cli.recipe import build


def test_the_example_is_true() -> None:
    result = doctest.testmod(build)
    assert result.attempted > 3
    assert result.failed == 0
