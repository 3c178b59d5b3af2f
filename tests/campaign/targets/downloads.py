"""Readers of raw downloads: the tables, archives and reports of each data set plugin."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.campaign.targets.target import SENTINEL, Target


def planned(name: str, **changes: Any) -> Callable[[Path, Path], None]:
    """Everything that a plugin reads before it decodes images."""

    @functools.cache
    def loaded() -> Any:
        # once: to look through all installed packages takes ten times as long as to read a table
        from medunifier_cli.plugin_index import load_dataset

        return load_dataset(name)

    def read(folder: Path, path: Path) -> None:
        plugin = loaded()
        values = {key: option.default for key, option in plugin.options.items()}
        list(plugin.plan(folder, {**values, **changes}).records)

    return read


def written_by(module: str, function: str = "write_raw", *arguments: Any) -> Callable[[Path, Path], None]:
    """A download in miniature, as a test of the plugin writes it."""

    def make(folder: Path, home: Path) -> None:
        getattr(importlib.import_module(module), function)(folder, *arguments)

    return make


def chexpert(folder: Path, home: Path) -> None:
    from tests.miniatures.chexpert import Row, write_tree

    names = ("Atelectasis", "Cardiomegaly", "Edema", "Pleural Effusion", "Pneumonia", "Consolidation")
    rows = [Row(1 + number, labels={names[number % 6]: 1.0, "Fracture": 0.0}) for number in range(12)]
    write_tree(folder / "CheXpert-v1.0-small", [*rows, Row(64_541, part="valid")])


def mimic(folder: Path, home: Path) -> None:
    from tests.miniatures import mimic as release

    text = release.report_text(f"{SENTINEL} lungs are clear.", "Normal.")
    studies = [
        release.Study(
            10000032 + number, 50414267 + number, ("PA", "LATERAL"), split, {"No Finding": 1.0}, text
        )
        for number, split in enumerate(("train", "validate", "test", "train"))
    ]
    release.write_jpg_release(folder, studies)
    release.write_reports_zip(folder / release.DICOM_ROOT / "mimic-cxr-reports.zip", studies)


def mimic_r2gen(folder: Path, home: Path) -> None:
    from tests.miniatures import mimic as release

    text = release.report_text(f"{SENTINEL} lungs are clear.", "Normal.")
    release.write_r2gen(folder, [release.Study(10000032, 50414267, ("PA",), "train", {}, text)])


def covidx(folder: Path, home: Path) -> None:
    from tests.miniatures.pictures import write_picture

    for part in ("train", "test"):
        lines = [
            f"P{n // 2} img{n}.png {('COVID-19', 'normal', 'pneumonia')[n % 3]} rsna\n" for n in range(9)
        ]
        (folder / f"{part}_COVIDx9A.txt").write_text("".join(lines))
        for n in range(9):
            write_picture(folder / part / f"img{n}.png", n)


def covid(folder: Path, home: Path) -> None:
    from tests.hand_made import covid_raw

    covid_raw(folder, 6)


def open_i(form: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, home: Path) -> None:
        from tests.miniatures import open_i as release

        reports = [release.Report(n, f"{SENTINEL} heart is normal.", "Normal.") for n in range(1, 5)]
        if form == "xml":
            release.write_xml(folder, reports, "png")
        elif form == "tgz":
            release.write_xml(folder, reports, "png", packed=True)
        elif form == "kaggle":
            release.write_kaggle(folder, reports)
        else:
            release.write_r2gen(folder, reports)

    return make


SETS: Mapping[str, tuple[Callable[[Path, Path], None], Callable[[Path, Path], None], Sequence[str]]] = {
    "rsna": (
        written_by("tests.unit.plugins.test_rsna", "write_raw", 9),
        planned("rsna", per_class=0),
        ("*.csv", "*/*.dcm"),
    ),
    "siim": (written_by("tests.unit.plugins.test_siim", "write_raw", 16), planned("siim"), ("*.csv",)),
    "covidx": (covidx, planned("covidx"), ("*.txt",)),
    "covid-chestxray": (covid, planned("covid-chestxray"), ("*.csv",)),
    "chexpert-5x200": (chexpert, planned("chexpert-5x200", per_class=1), ("*/*.csv",)),
    "mimic-cxr": (mimic, planned("mimic-cxr", per_class=0), ("**/*.gz", "**/*.zip", "**/*.csv")),
    "mimic-cxr, R2Gen": (mimic_r2gen, planned("mimic-cxr", per_class=0), ("**/annotation.json",)),
    "open-i, XML": (open_i("xml"), planned("open-i"), ("**/*.xml",)),
    "open-i, tgz": (open_i("tgz"), planned("open-i"), ("**/*.tgz",)),
    "open-i, Kaggle": (open_i("kaggle"), planned("open-i"), ("**/*.csv",)),
    "open-i, R2Gen": (open_i("r2gen"), planned("open-i"), ("**/annotation.json",)),
}
TARGETS = [Target(f"download of {name}", 4, files, make, read) for name, (make, read, files) in SETS.items()]
