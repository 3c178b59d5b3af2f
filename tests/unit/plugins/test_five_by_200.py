"""Sampling a 5x200 set where patients qualify for several classes."""

from __future__ import annotations

import pytest
from medunifier_plugins.raw.five_by_200 import sample_5x200

from medunifier_cli.data.contract import DataError

CLASSES = ("rare", "common")
# Patients 0 to 9 have an image of either class; 10 to 19 a common one only. Rows tell patient and class.
CANDIDATES = [{patient: [100 + patient] for patient in range(10)}, {p: [200 + p, 300 + p] for p in range(20)}]


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_is_taken_once_over_all_classes_and_the_rare_class_comes_first(seed: int) -> None:
    rare, common = sample_5x200(CANDIDATES, CLASSES, 10, seed, lambda row: True)
    assert sorted(rare) == list(range(100, 110))
    patients = [row % 100 for row in rare + common]
    assert len(set(patients)) == len(patients) == 20


def test_an_image_that_is_not_accepted_is_replaced_by_another_of_the_patient_or_by_another_patient() -> None:
    _, common = sample_5x200(CANDIDATES, CLASSES, 5, 0, lambda row: not 200 <= row < 300 and row != 310)
    assert all(300 <= row < 320 and row != 310 for row in common)
    assert len(common) == 5


def test_too_few_is_an_error_that_counts() -> None:
    with pytest.raises(DataError, match=r"5x200: 9 of 10 rare images found, 10 patients qualify by label"):
        sample_5x200(CANDIDATES, CLASSES, 10, 0, lambda row: row != 103)
