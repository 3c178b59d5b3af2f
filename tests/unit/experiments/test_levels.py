"""experiments/levels.py, judging.py and curves.py where the answer is known by hand."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from experiments.curves import HEIGHT, LEFT, WIDTH, Panel, picture
from experiments.judging import markdown, once, pairwise_distance, row_of
from experiments.levels import Cases, shuffled


def test_the_other_image_is_always_of_another_class() -> None:
    class_n = np.array([0, 1, 2, 0, 1, 2, 0])
    cases = Cases(np.zeros((7, 4, 4), np.uint8), class_n, [""] * 7, torch.empty(0), torch.empty(0))
    other = shuffled(cases, seed=1)
    assert (class_n[other] != class_n).all()
    assert other.equal(shuffled(cases, seed=1))
    assert not other.equal(shuffled(cases, seed=2))


def test_pairwise_distance_is_between_images_of_one_class() -> None:
    random = np.random.default_rng(0)
    feature_nD, asked_n = random.normal(size=(9, 3)).astype(np.float32), np.array([0, 1, 2] * 3)
    by_hand = [
        np.linalg.norm(feature_nD[i] - feature_nD[j])
        for i, j in combinations(range(9), 2)
        if asked_n[i] == asked_n[j]
    ]
    assert len(by_hand) == 9
    assert pairwise_distance(feature_nD, asked_n) == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert pairwise_distance(np.ones((9, 3), np.float32), asked_n) == 0


def test_what_was_measured_is_read_from_its_file(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, list[float]]:
        calls.append(1)
        return {"Fréchet": [0.1 + 0.2]}

    path = tmp_path / "new" / "one.json"
    assert once(path, compute) == once(path, compute) == {"Fréchet": [0.1 + 0.2]}
    assert len(calls) == 1


def test_a_cell_shows_the_interval_where_there_is_one() -> None:
    values = {"a": [0.5, 0.25, 0.751], "b": [3.14159]}
    assert row_of("set", values, ["b", "a", "c"]) == ["set", "3.14", "0.50 (0.25-0.75)", ""]
    assert markdown(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"


def test_a_picture_has_every_point_in_its_panel_and_higher_values_higher() -> None:
    curve = [(1.0, 0.2, 0.1, 0.3), (2.0, 0.8, 0.7, 0.9)]
    panels = [Panel(f"measure {n} <&>", {"a": curve, "b": [(1.5, 0.5, 0.5, 0.5)]}, 0.6) for n in range(4)]
    svg = ElementTree.fromstring(picture(panels, "guidance", "ceiling"))
    space = "{http://www.w3.org/2000/svg}"
    groups = svg.findall(f"{space}g")
    assert [group.attrib["transform"] for group in groups] == [
        f"translate({x * WIDTH},{y * HEIGHT})" for x, y in ((0, 0), (1, 0), (2, 0), (0, 1))
    ]
    marks = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in groups[0].findall(f"{space}circle")]
    assert len(marks) == 3
    (x0, low), (x1, high), (x2, middle) = marks
    assert x0 == LEFT < x2 < x1 < WIDTH
    assert 0 < high < middle < low < HEIGHT
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    words = [text.text for text in svg.iter(f"{space}text")]
    assert words.count("guidance") == 4
    assert words[-3:] == ["a", "b", "ceiling"]
    with pytest.raises(ValueError, match="nothing to plot"):
        picture([Panel("empty", {"a": []})], "x", "y")
