"""The miniature world in which the pages' blocks are run: data, trained runs and files by the names they use.

    data/shards/phantom      52 phantom radiographs; raw downloads in miniature in data/raw
    runs/demo, full          a pre-trained model of some 50,000 weights
    runs/prior-demo          its priors; runs/probe-demo-1, a head on it
    demo/                    data and runs once more, where `make demo` leaves them
    film.png, film.dcm, ...  one's own files

The shipped recipes are there in miniature as well (`small_recipes`): the same keys, a small model, two steps.
"""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from pathlib import Path

from PIL import Image

from medunifier_cli.recipe.load import dump_recipe, load_any, shipped_recipes
from tests.docs.stand_ins import StandIns, bash
from tests.miniatures import clinic, mimic, pictures, rocov2, tables
from tests.run.small_priors import make_codes_differ

ALONE = ("train.processes=1", "train.precision=no", "train.global_batch=8", "train.steps=2")
PRETRAIN = (
    *ALONE, "train.micro_batch=0", "train.valid_batches=1", "data.image_size=64", "data.workers=0",
    "data.dataset=phantom",
    "text.tokenizer=train", "text.vocabulary=300", "model.vit.name=vit_tiny_patch16_224",
    "model.vit.weights=random", "model.vit.drop_last_block=false",
    "model.vit.patch_size=16", "model.vit.width=32", "model.vit.depth=1", "model.vit.heads=2",
    "model.qformer.weights=random", "model.qformer.layers=2", "model.qformer.width=32",
    "model.qformer.heads=2", "model.qformer.ffn_width=64", "model.qformer.queries=4",
    "model.generator.codebook_size=16", "model.generator.code_width=16", "model.generator.base_width=16",
    "model.generator.residual_width=8", "objectives.embed_width=16",
)  # fmt: skip
SNAIL = ("channels=16", "blocks=1", "layers=1", "heads=2")
MASKED = ("width=32", "layers=1", "heads=2", "top_rounds=2", "bottom_rounds=2")
SMALL = {
    "pretrain": PRETRAIN,
    "finetune": (*ALONE, "data.dataset=phantom", "data.workers=0"),
    "fit-prior": (
        *ALONE, "train.micro_batch=0", "train.valid_batches=1",
        *(f"prior.{level}.{size}" for level in ("top", "bottom") for size in SNAIL),
        *(f"prior.masked.{size}" for size in MASKED),
    ),
}  # fmt: skip
"""Overrides by stage; a data set that the recipe names is replaced only where its licence keeps it away."""
NOTES = ("COVID-19", "Pneumonia/Bacterial", "No Finding")
CLASSES = ("Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion")


def write_recipes(folder: Path) -> Path:
    """All shipped recipes in miniature, as the package `small_recipes`; the folder to import it from."""
    package = folder / "small_recipes"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in shipped_recipes():
        small = load_any(name, SMALL[load_any(name, ()).stage])
        (package / f"{name}.yaml").write_text(dump_recipe(small), encoding="utf-8")
    return folder


def write_files(home: Path) -> None:
    """What a reader of the pages is told to have: films, tables, lists, raw downloads."""
    for name, seed in (("film.png", 1), ("folder/one.png", 2), ("folder/two.png", 3)):
        pictures.write_picture(home / name, seed)
    with Image.open(home / "film.png") as small:  # large enough for the boxes that pages name
        small.resize((96, 96)).save(home / "film.png")
    for name in ("film.dcm", "another.dcm"):
        pictures.write_dicom(home / name, 4)
    pairs = [
        {"image": f"images/{n}.png", "report": f"Film {n % 9}, {NOTES[n % 3]}.", "effusion": str(n % 2)}
        for n in range(60)
    ]
    for n, row in enumerate(pairs):
        pictures.write_picture(home / row["image"], n)
    (home / "pairs.csv").write_text(tables.as_csv(pairs), encoding="utf-8")
    write_tars(home / "shards", pairs)
    clinic.write_clinic(home / "clinic")
    rocov2.write_tree(home / "DOWNLOAD")
    for name, said in (("greedy", "Edema."), ("beams", "No edema.")):
        (home / f"{name}.jsonl").write_text(f'{{"reference": "No edema.", "hypothesis": "{said}"}}\n' * 4)
    (home / ".venv/bin").mkdir(parents=True)
    (home / ".venv/bin/activate").touch()
    write_covid(home / "data/raw/covid-chestxray")
    write_mimic(home / "data/raw/mimic-cxr")


def write_tars(folder: Path, pairs: list[dict[str, str]]) -> None:
    """A hundred shards as img2dataset leaves them, most of them empty."""
    folder.mkdir()
    for number in range(100):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            if number < len(pairs):
                tar.add(folder.parent / pairs[number]["image"], f"{number:09d}.png")
                text = pairs[number]["report"].encode()
                info = tarfile.TarInfo(f"{number:09d}.txt")
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text))


def write_covid(raw: Path) -> None:
    with_header = ["patientid", "finding", "view", "modality", "filename", "clinical_notes"]
    (raw / "images").mkdir(parents=True)
    with (raw / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(with_header)
        for n in range(80):
            pictures.write_picture(raw / "images" / f"{n}.png", n)
            note = f"Patient {n} had a cough for {n % 7} days."
            table.writerow([n, NOTES[n % 3], "PA", "X-ray", f"{n}.png", note])


def write_mimic(raw: Path) -> None:
    studies = []
    for n in range(20):
        split = "train" if n < 14 else "validate" if n < 17 else "test"
        report = mimic.report_text(f"Finding number {n}.", f"Impression {n % 3}.")
        labels = {CLASSES[n % 5]: 1.0}
        studies.append(mimic.Study(10000000 + n, 50000000 + n, ("PA",), split, labels, report))
    mimic.write_jpg_release(raw, studies)
    mimic.write_reports_zip(raw / mimic.DICOM_ROOT / "mimic-cxr-reports.zip", studies)


def build(home: Path, programs: StandIns) -> None:
    """Make the world with the commands that a user would type."""
    write_files(home)
    (home / "demo").mkdir()
    for name in ("data", "runs"):
        (home / "demo" / name).symlink_to(f"../{name}")
    _do(home, programs, "mu prepare phantom --size 64\nmu pretrain demo")
    make_codes_differ(home, "demo")
    _do(home, programs, "mu fit-prior prior-demo\nmu finetune probe-demo")
    shutil.copytree(home / "runs/demo", home / "runs/full")


def _do(home: Path, programs: StandIns, code: str) -> None:
    done = bash(code, home, programs)
    assert done.returncode == 0, done.stdout + done.stderr
