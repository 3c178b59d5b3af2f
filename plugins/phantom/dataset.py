"""The embedded data set: drawn chest radiographs with known findings, each with a report written from them.

No download, no licence, any size and any number. The truth of each image stands in its labels and facts, so
that zero-shot classes, generated reports and prompted images can be checked exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from medunifier_cli.data.contract import DataError, DatasetPlugin, DrawnImage, Option, Plan, Record

from . import reading
from .anatomy import make_anatomy
from .case import CLASSES, SPLITS, make_case
from .drawing import PhantomImage
from .prompts import OTHER_PROMPTS, report_prompts
from .reports import write_report

NO_FINDING = "No Finding"


class Phantom(DatasetPlugin):
    """Drawn radiographs with the five classes of the 5x200 sets."""

    name: ClassVar[str] = "phantom"
    title: ClassVar[str] = "Phantom: drawn chest radiographs with known findings"
    needs: ClassVar[str] = "Nothing: images and reports are drawn from a seed."
    needs_raw: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {
        "train": Option(3000, "images in the train split"),
        "valid": Option(500, "images in the valid split"),
        "test": Option(500, "images in the test split"),
        "seed": Option(0, "another seed gives other patients, 0 or more"),
    }
    splits: ClassVar[tuple[str, ...]] = SPLITS
    classes: ClassVar[tuple[str, ...]] = CLASSES

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        """Records of train, valid and test, in order of their numbers; `raw` is not looked at."""
        counts = {split: int(options[split]) for split in SPLITS}
        seed = int(options["seed"])
        for name, value in {**counts, "seed": seed}.items():
            if value < 0:
                raise DataError(f"phantom: {name}={value} is less than 0; give 0 or more with -o {name}=N")
        if not any(counts.values()):
            raise DataError("phantom: train, valid and test are all 0; give at least one with -o train=N")
        return Plan(
            records=_records(counts, seed),
            total=sum(counts.values()),
            split_source=f"drawn from separate random streams, seed {seed}",
            seed=seed,
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """`report`: sentences as the reports write them. `other`: the same classes in other words."""
        return {"report": report_prompts(), "other": OTHER_PROMPTS}

    def findings_in(self, text: str) -> frozenset[str]:
        """Classes that a phantom-style report asserts, negations understood."""
        return reading.findings_in(text)


def _records(counts: Mapping[str, int], seed: int) -> Iterator[Record]:
    for split, count in counts.items():
        for number in range(count):
            yield make_record(seed, split, number)


def make_record(seed: int, split: str, number: int) -> Record:
    """One record; a pure function of its arguments, nothing is drawn yet."""
    case = make_case(seed, split, number)
    present = {f.name for f in case.findings}
    name = f"{split}-{number:06d}"
    return Record(
        key=f"phantom-{seed}-{name}",
        image=DrawnImage(PhantomImage(seed, split, number)),
        split=split,
        subject=f"{seed}-{name}",
        study=f"{seed}-{name}",
        source=f"seed-{seed}/{split}/{number:06d}",
        view="PA",
        sections=write_report(case),
        labels={c: float(c in present) for c in CLASSES} | {NO_FINDING: float(not present)},
        facts={
            "findings": [asdict(f) for f in case.findings],
            "heart_ratio": round(make_anatomy(case).heart_ratio, 4),
        },
    )
