"""Data set `mimic-cxr`: frontal radiographs with reports, official split, 5x200 set sampled from train.

Reads MIMIC-CXR-JPG (2.0.0 or 2.1.0) or MIMIC-CXR (DICOM), under `physionet.org/files/` as wget leaves them or
moved elsewhere. Tables and reports are searched for in every release folder, because the reports come with
one release and the tables with the other. Without the split table, R2Gen's `annotation.json` of MIMIC-CXR is
read instead, with the findings and the split that it gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DataError, DatasetPlugin, Option, Plan, Subset

from ..raw.five_by_200 import CLASS_LISTS
from ..raw.five_by_200_prompts import PROMPT_SETS
from ..raw.sampling import listed_ids
from ..raw.tree import need_folder
from .files import HELD_OUT, MimicFiles
from .r2gen import IMAGE_FOLDERS, find_annotation, read_annotation
from .release import find_release, release_folders
from .reports import find_reports
from .tables import has_split_table, read_images, read_labels


class MimicCxr(DatasetPlugin):
    """MIMIC-CXR, Boston 2011-2016: 377,110 radiographs with 227,835 reports; keeps frontal images with text.

    Citation: Johnson et al., MIMIC-CXR, Scientific Data 6:317, 2019; MIMIC-CXR-JPG, arXiv:1901.07042
    Licence: PhysioNet's for credentialed users, with a data use agreement; see LICENSE.txt in the release
    Labels: 14 findings; classes: Atelectasis, Cardiomegaly, Pneumonia, Edema, Pleural Effusion
    Homepage: https://physionet.org/content/mimic-cxr-jpg/
    """

    name = "mimic-cxr"
    title = "MIMIC-CXR: chest radiographs with reports, Boston 2011-2016"
    citation = "Johnson et al., MIMIC-CXR, Scientific Data 6:317, 2019; MIMIC-CXR-JPG, arXiv:1901.07042"
    licence = "PhysioNet's for credentialed users, with a data use agreement; see LICENSE.txt in the release"
    homepage = "https://physionet.org/content/mimic-cxr-jpg/"
    needs = (
        "MIMIC-CXR-JPG with its split, metadata and chexpert tables, and mimic-cxr-reports.zip of MIMIC-CXR; "
        "or MIMIC-CXR (DICOM) with those three tables; or R2Gen's annotation.json of MIMIC-CXR and "
        "images/p10/.... Credentialed access at PhysioNet."
    )
    splits = ("train", "valid", "test", HELD_OUT)
    classes = CLASS_LISTS["paper"]
    benchmark_split = HELD_OUT
    options: ClassVar[Mapping[str, Option]] = {
        "sections": Option(
            "any",
            "sections that a report needs to be kept. The paper excludes what lacks 'a findings or "
            "impression section', which any and both fit; of 227,835 studies, any keeps 217,245 (95 %), "
            "impression 189,561 (83 %), both at most as many",
            ("any", "both", "findings", "impression"),
        ),
        "release": Option(
            "auto", "release of the images; auto: JPG if both are there", ("auto", "jpg", "dicom")
        ),
        "reports": Option("", "path of mimic-cxr-reports.zip, or of a folder with files/p10/.../s*.txt"),
        "labeller": Option("chexpert", "labeller whose table is read", ("chexpert", "negbio")),
        "class_list": Option(
            "paper", "classes of 5x200: with Pneumonia, or with Consolidation", ("paper", "gloria")
        ),
        "per_class": Option(200, "images per class of 5x200; 0: no 5x200 set"),
        "ids_5x200": Option("", "file that lists the dicom ids of the 5x200 set; empty: sample it"),
        "holdout": Option(
            "subject",
            "unit removed from the other splits with each 5x200 image",
            ("subject", "study", "image"),
        ),
        "equalise": Option(True, "histogram equalisation, as in MIMIC-CXR-JPG; DICOM only"),
        "seed": Option(0, "seed of the 5x200 set"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        search = release_folders(raw)
        r2gen = None if has_split_table(search) else find_annotation(search)
        release = find_release(search, options["release"], IMAGE_FOLDERS if r2gen else ("files",))
        roots = [release.root, *(folder for folder in search if folder != release.root)]
        annotation = read_annotation(r2gen, roots) if r2gen else None
        own_reports = None if options["reports"] else annotation
        files = MimicFiles(
            raw=raw,
            release=release,
            images=annotation.images if annotation else read_images(roots),
            labels=read_labels(roots, options["labeller"]),
            reports=own_reports or find_reports(options["reports"], roots),
            sections=options["sections"],
            equalise=options["equalise"],
            r2gen=annotation is not None,
        )
        held_out = self._held_out(files, options)
        subsets = {}
        if len(held_out):
            keys = [files.images.key(row) for row in held_out]
            subsets[HELD_OUT] = Subset(
                keys, _rule(options), None if options["ids_5x200"] else options["seed"]
            )
        return Plan(
            records=files.records(held_out, options["holdout"]),
            total=len(files.images),
            split_source="R2Gen (annotation.json)" if annotation else "official (mimic-cxr-2.0.0-split)",
            seed=options["seed"],
            subsets=subsets,
            expected={HELD_OUT: len(held_out)} if len(held_out) else {},
            warnings=files.warnings(),
            classes=CLASS_LISTS[options["class_list"]],
            allow_shared_subjects=options["holdout"] != "subject",
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return PROMPT_SETS

    def _held_out(self, files: MimicFiles, options: Mapping[str, Any]) -> NDArray[np.int64]:
        """Rows of the 5x200 set, sorted."""
        if options["ids_5x200"]:
            list_file = Path(options["ids_5x200"])
            ids = listed_ids(list_file, HELD_OUT, lambda text: PurePosixPath(text).stem)
            return np.sort(files.images.rows_of(ids, str(list_file)))
        if options["per_class"] == 0:
            return np.zeros(0, dtype=np.int64)
        if files.labels is None or files.all_views:
            table = f"mimic-cxr-2.0.0-{'metadata' if files.labels else options['labeller']}.csv(.gz)"
            raise DataError(
                f"{files.release.root}: no {table}, by which 5x200 is sampled; it comes with MIMIC-CXR-JPG. "
                "To do without the set: -o per_class=0"
            )
        classes = CLASS_LISTS[options["class_list"]]
        return files.sample(files.labels, classes, options["per_class"], options["seed"])


def _rule(options: Mapping[str, Any]) -> str:
    if options["ids_5x200"]:
        return f"given as {Path(options['ids_5x200']).name}"
    return (
        f"{options['per_class']} of each class from official train: only that finding positive, the others "
        f"negative or blank ({options['labeller']}), frontal, with text, one image per patient"
    )
