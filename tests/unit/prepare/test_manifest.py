"""Counts that go into a manifest, against plain counting."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medunifier_cli.data.contract import FileImage, Plan, Record, Subset
from medunifier_cli.data.disk.index import index_dtype
from medunifier_cli.prepare.manifest import (
    add_up,
    class_counts,
    count_warnings,
    label_counts,
    subset_entries,
    tally,
)


def record(view: str | None, sections: dict[str, str], kind: str = "report") -> Record:
    return Record("k", FileImage(Path("x")), "train", "p", "s", "x", view, sections, text_kind=kind)


def test_tally_counts_texts_by_the_sections_that_make_one() -> None:
    records = [
        record("PA", {"findings": "clear", "history": "cough"}),
        record(None, {"findings": " ", "history": "cough"}),
        record("PA", {}, "clinical_notes"),
    ]
    counts = tally(records, ("findings", "impression"))
    assert counts == {
        "views": {"PA": 2, "unknown": 1},
        "text_kinds": {"clinical_notes": 1, "report": 2},
        "sections": {"findings": 1, "history": 2},
        "text": {"none": 2, "there": 1},
    }
    assert add_up([counts, counts])["views"] == {"PA": 4, "unknown": 2}


def test_blank_is_not_negative() -> None:
    index = np.zeros(5, index_dtype(2, 2))
    index["labels"][:, 0] = [1, 0, np.nan, -1, 1]
    index["labels"][:, 1] = [0.5, np.nan, np.nan, np.nan, 0]
    assert label_counts(index, ["A", "B"]) == {
        "A": {"blank": 1, "negative": 1, "positive": 2, "uncertain": 1},
        "B": {"0.5": 1, "blank": 3, "negative": 1},
    }


def test_classes_in_their_official_order() -> None:
    counts = class_counts(np.array([2, -1, 0, 2, -1]), ("A", "B", "C"))
    assert list(counts.items()) == [("A", 1), ("B", 0), ("C", 2)]


def test_a_large_deviation_from_the_full_download_triggers_a_warning() -> None:
    expected = {"all": 243_300, "test": 100, "train": 1000}
    warnings = count_warnings(expected, {"train": 1010, "test": 194})
    assert warnings == [
        "found 1,204 of about 243,300 images: is the download complete?",
        "found 194 images in test, about 100 expected: is it another release?",
    ]
    assert count_warnings({"all": 1000}, {"train": 990}) == []


def test_subsets_keep_their_ids_and_say_which_were_not_written() -> None:
    def nothing() -> Iterator[Record]:
        yield from ()

    plan = Plan(
        nothing(), subsets={"5x200": Subset(["b", "longer", "a"], "drawn", 3), "none": Subset([], "x")}
    )
    entries = subset_entries(plan, np.array([b"a", b"b"]))
    assert entries["5x200"] == {
        "rule": "drawn", "seed": 3, "n": 3, "keys": ["b", "longer", "a"], "not_written": ["longer"],
    }  # fmt: skip
    assert entries["none"]["keys"] == []
