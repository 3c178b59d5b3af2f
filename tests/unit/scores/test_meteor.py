"""METEOR's Java program is started in a locale of its own: in the user's it may answer 0,5 instead of 0.5."""

from __future__ import annotations

import io
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from medunifier_cli.scores.text import meteor as module


@pytest.mark.parametrize("locale", ["de_DE.ISO-8859-1", None])
def test_the_program_answers_with_decimal_points_in_every_locale(
    monkeypatch: pytest.MonkeyPatch, locale: str | None
) -> None:
    class Program:
        """As Java does, takes the decimal sign from the locale that it is started in."""

        def __init__(self) -> None:
            answer = b"0,5\n" if os.environ.get("LC_ALL", "de_DE").startswith("de") else b"0.5\n"
            self.meteor_p = SimpleNamespace(
                stdin=io.BytesIO(), stdout=io.BytesIO(answer * 2), stderr=io.BytesIO(),
                kill=lambda: None, wait=lambda: None,
            )  # fmt: skip

        def _stat(self, hypothesis: str, references: list[str]) -> str:
            return "1.0 1.0"

    if locale is None:
        monkeypatch.delenv("LC_ALL", raising=False)
    else:
        monkeypatch.setenv("LC_ALL", locale)
    fake = ModuleType("pycocoevalcap.meteor.meteor")
    monkeypatch.setattr(fake, "Meteor", Program, raising=False)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", fake)
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/usr/bin/{name}")
    (scores,) = module.meteor([module.Corpus([["no", "effusion"]], [[["no", "effusion"]]])])
    assert (scores.corpus, scores.per_report.tolist()) == (0.5, [0.5])
    assert os.environ.get("LC_ALL") == locale, "the rest of mu keeps the user's locale"
