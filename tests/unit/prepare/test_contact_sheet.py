"""What stands under an image of a contact sheet."""

from __future__ import annotations

from typing import Any

import pytest

from medunifier_cli.prepare.contact_sheet import _labels


@pytest.mark.parametrize(
    ("meta", "line"),
    [
        ({"view": "PA", "labels": {"Edema": 1, "Pneumonia": -1, "Fracture": 0}}, "[PA] Edema, Pneumonia?"),
        ({"view": "PA", "labels": {"Edema": 0}}, "[PA] no positive label"),
        ({"view": None, "labels": {"Edema": 1}}, "Edema"),
        ({"view": "AP", "labels": {}}, "[AP]"),
        ({"view": None, "labels": {}}, ""),
    ],
)
def test_only_what_the_data_set_has_is_told(meta: dict[str, Any], line: str) -> None:
    assert _labels(meta) == line
