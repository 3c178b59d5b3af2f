"""`mu synthesize` and `mu score --fake` end to end on a small phantom, and their messages on mistakes."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

from experiments import adherence, levels
from experiments.judging import Judge, match_of
from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.checkpoint.priors import restore_priors
from medunifier_cli.cli import TRAINING
from medunifier_cli.model.sampling import Draws
from medunifier_cli.run.record import Run
from tests.run.signalled import stopped_at
from tests.run.small_priors import PRETRAIN, PRIORS, call, fit_small_priors


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a pre-training run `model` and its priors `priors` under one folder."""
    return fit_small_priors(tmp_path_factory.mktemp("priors"))


def images(folder: Path) -> dict[str, str]:
    """Hash of each image."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("0*.png")}


def test_same_seed_same_images_whatever_the_batch_and_however_often_stopped(road: Path) -> None:
    ask = ("synthesize", "--n", 11, "--prompts", "report", "--guidance", 2, "--top-k", 9)
    code, printed = call(road, *ask, "--out", road / "a")
    assert code == 0, printed
    assert call(road, *ask, "--out", road / "b", "--batch", 3)[0] == 0
    assert call(road, *ask, "--out", road / "c", "--n", 5)[0] == 0
    (road / "c" / "000002.png").unlink()
    with (road / "c" / "samples.jsonl").open("a") as file:
        file.write('{"image": "000005.png", "sam')  # as a kill leaves it
    kept = (road / "c" / "000001.png").stat().st_mtime_ns
    assert call(road, *ask, "--out", road / "c", "--batch", 2)[0] == 0
    assert (road / "c" / "000001.png").stat().st_mtime_ns == kept
    assert len(images(road / "a")) == 11
    assert images(road / "a") == images(road / "b") == images(road / "c")
    for other in "bc":
        assert (road / other / "samples.jsonl").read_bytes() == (road / "a" / "samples.jsonl").read_bytes()
    assert call(road, *ask, "--out", road / "d", "--seed", 1)[0] == 0
    assert images(road / "d") != images(road / "a")


def test_a_dry_run_tells_of_samples_and_reconstructions_and_writes_nothing(
    road: Path, tmp_path: Path
) -> None:
    ask = ("synthesize", "--n", 4, "--prompts", "report", "--seed", 3, "--out", tmp_path / "some")
    assert call(road, *ask, "--n", 3)[0] == 0
    back = ("synthesize", "--reconstruct", "valid", "--out", tmp_path / "back")
    assert call(road, *back, "--n", 1)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in road.rglob("*")}

    def told(*args: object) -> dict[str, object]:
        code, printed = call(road, *args, "--dry-run", "--format", "json")
        assert code == 0, printed
        return dict(json.loads(printed[printed.index("{") : printed.rindex("}") + 1]))

    facts = told(*ask)
    assert (facts["images"], facts["start"]) == (4, "resumes after 3")
    assert facts["settings"] == "seed 3, temperature 1, guidance 1"
    assert sum(int(one.split()[-1]) for one in str(facts["of classes"]).split(",")) == 4
    assert told(*ask, "--n", 3)["start"] == "nothing: all are there"
    facts = told("synthesize", "--n", 9, "--out", tmp_path / "new")
    assert (facts["start"], facts["prompts"]) == ("new", "none")
    facts = told("synthesize", "--reconstruct", "valid", "--n", 2, "--out", tmp_path / "new")
    assert (facts["images"], facts["start"], facts["of"]) == (2, "new", "phantom/valid")
    assert told(*back, "--n", 2)["start"] == "anew; 1 are there and stay"
    assert not (tmp_path / "new").exists()
    assert {path: path.stat().st_mtime_ns for path in road.rglob("*")} == before
    for more, words in (
        (("--n", 2), "holds 3 images already"),
        (("--temperature", 2), "temperature was 1.0, now 2.0"),
        (("--out", road / "data"), "holds other files"),
        (("--out", tmp_path / "some" / "settings.json"), "is no folder"),
    ):
        code, printed = call(road, *ask, *more, "--dry-run")
        assert code == 1
        assert words in printed


def test_best_of_keeps_the_candidate_that_matches_its_prompt_best(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates of an image are the images of a file that has its prompt three times in a row."""
    monkeypatch.setenv("MU_DATA", str(road / "data"))
    prompts = ["Large left pleural effusion.", "Mild pulmonary edema."]
    asked = [prompts[number % 2] for number in range(5)]
    (tmp_path / "two.txt").write_text("\n".join(prompts))
    (tmp_path / "each.txt").write_text("\n".join(text for text in asked for _ in range(3)))
    ask = ("synthesize", "--guidance", 1.5)
    code, printed = call(road, *ask, "--prompts", tmp_path / "each.txt", "--out", tmp_path / "all")
    assert code == 0, printed
    ask = (*ask, "--prompts", tmp_path / "two.txt", "--n", 5, "--best-of", 3)
    for name, more in (("best", ()), ("parts", ("--n", 2)), ("parts", ("--batch-size", 2))):
        code, printed = call(road, *ask, *more, "--out", tmp_path / name)
        assert code == 0, printed
    assert images(tmp_path / "best") == images(tmp_path / "parts")
    drawn = [tmp_path / "all" / f"{number:06d}.png" for number in range(15)]
    pixels = np.stack([np.asarray(Image.open(path)) for path in drawn])
    trained = restore(Run(road / "runs" / "model"))
    odds = [match_of(trained, pixels[i : i + 1], [asked[i // 3]])[0] for i in range(15)]
    lines = [json.loads(line) for line in (tmp_path / "best" / "samples.jsonl").read_text().splitlines()]
    chosen = [int(np.argmax(odds[3 * number : 3 * number + 3])) for number in range(5)]
    assert len(set(chosen)) > 1, "not always the first"
    for number, line in enumerate(lines):
        assert (line["candidate"], line["best_of"]) == (chosen[number], 3)
        best = 3 * number + chosen[number]
        assert 1 / (1 + np.exp(-line["match"])) == pytest.approx(odds[best], abs=1e-4)
        assert (tmp_path / "best" / line["image"]).read_bytes() == drawn[best].read_bytes()
    code, printed = call(road, *ask, "--best-of", 2, "--out", tmp_path / "best")
    assert code == 1
    assert "best_of was 3, now 2" in printed


def test_levels_of_codes_are_exchanged_one_at_a_time(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MU_DATA", str(road / "data"))
    monkeypatch.setenv("MU_RUNS", str(road / "runs"))
    fitted = restore_priors(Run(road / "runs" / "priors"))
    cases = levels.cases_of(fitted.pretrained, "valid", 6)
    draws = Draws(3, guidance=1.5)
    sets = levels.sampled(fitted, cases, draws)
    top, bottom = sets["both sampled"]
    assert sets["true top, sampled bottom"][0].equal(cases.top_nTT)
    assert sets["sampled top, true bottom"][0].equal(top)
    assert sets["sampled top, true bottom"][1].equal(cases.bottom_nGG)
    # had the sampled tops been the true ones, the bottom under them would be the one sampled with them
    as_true = levels.sampled(fitted, replace(cases, top_nTT=top), draws)
    assert as_true["true top, sampled bottom"][1].equal(bottom)
    assert not sets["true top, sampled bottom"][1].equal(bottom)


def test_adherence_is_measured_once_and_drawn(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MU_DATA", str(road / "data"))
    monkeypatch.setenv("MU_RUNS", str(road / "runs"))
    short = ("-o", "train.epochs=1", "-o", "train.threads=1", "-o", "train.tensorboard=false")
    code, printed = call(road, "finetune", "probe-demo", "--run", "model", "--name", "probe", *short)
    assert code == 0, printed
    ask = ["--priors", "priors", "--classifier", "probe", "--home", str(tmp_path), "--images", "10"]
    curves = ["--guidance", "1", "--guidance", "2", "--temperature", "1", "--best-of", "1", "--best-of", "2"]
    first = CliRunner().invoke(adherence.main, [*ask, *curves, "--other", "second"], catch_exceptions=False)
    assert first.exit_code == 0
    rows = [line.split(" | ")[0].strip("| ") for line in first.stdout.splitlines()]
    assert rows[2:] == [
        "real", "reconstructed", "priors, temperature 1, guidance 1", "priors, temperature 1, guidance 2",
        "priors, temperature 1, best of 2, guidance 1", "priors, temperature 1, best of 2, guidance 2",
    ]  # fmt: skip
    assert "match by second's ITM" in first.stdout
    again = ElementTree.parse(tmp_path / "adherence.svg").getroot()
    assert len(list(again)) > 8
    asked = [*ask, "--guidance", "1", "--temperature", "1", "--other", "second", "--features", "second"]
    elsewhere = CliRunner().invoke(adherence.main, asked, catch_exceptions=False)
    for one, other in zip(first.stdout.splitlines()[2:5], elsewhere.stdout.splitlines()[2:], strict=True):
        cells, others = one.split(" | "), other.split(" | ")
        assert cells[:-4] == others[:-4], "classes and matches are the same"
        assert cells[-4:] != others[-4:], "distances are in the features of another run"
    monkeypatch.setattr(Judge, "measure", None)
    second = CliRunner().invoke(adherence.main, [*ask, *curves, "--other", "second"], catch_exceptions=False)
    assert second.stdout == first.stdout, "what is measured is not measured again"


EVALUATE = "medunifier_cli.evaluate."
PHASES: dict[str, tuple[str, tuple[object, ...]]] = {
    "encoding codes": (
        "medunifier_cli.stages.codes.encode_split",
        ("fit-prior", PRIORS, "--name", "signalled", "--run", "model"),
    ),
    "measuring priors": (
        "medunifier_cli.stages.fit_prior.PriorFitting.measure",
        ("fit-prior", PRIORS, "--name", "priors", "--run", "model"),
    ),
    "computing features": (
        "medunifier_cli.stages.features.compute_features",
        ("finetune", "probe-demo", "--run", "model", "--name", "signalled", "-o", "data.workers=0"),
    ),
    "embedding": (
        EVALUATE + "retrieval.embed.embed_images", ("zeroshot", "--run", "model", "--split", "valid")
    ),
    "ranking": (
        EVALUATE + "retrieval.retrieval._scores", ("retrieve", "--run", "model", "--split", "test")
    ),
    "comparing with prompts": (
        EVALUATE + "retrieval.zeroshot.class_scores", ("zeroshot", "--run", "model", "--split", "test")
    ),
    "writing reports of a split": (
        EVALUATE + "reports.writer.Writer.write", ("report", "--run", "model", "--split", "test")
    ),
    "decoding synthetic images": (EVALUATE + "synthesis.synthesis.decode", ("synthesize", "--n", 2)),
    "comparing images": (EVALUATE + "synthesis.judge.judge_images", ("score", "--fake", "train", "model")),
    "writing shards": (
        "medunifier_cli.prepare.write.ShardWriter.add",
        ("prepare", "phantom", "--size", 32, "--workers", 2, "-o", "train=9", "-o", "valid=3"),
    ),
    "reading shards": ("medunifier_cli.data.shards.Shards.open", ("check", PRETRAIN)),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_long_phase(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, number: signal.Signals
) -> None:
    """A scheduler's with 75; Ctrl-C as everywhere, but where training would resume with 75 too."""
    monkeypatch.setenv("MU_RUNS", str(road / "runs"))
    if phase != "writing shards":
        monkeypatch.setenv("MU_DATA", str(road / "data"))
    monkeypatch.chdir(tmp_path)
    place, arguments = PHASES[phase]
    code, printed = stopped_at(monkeypatch, place, number, *arguments)
    shutil.rmtree(road / "runs" / "signalled", ignore_errors=True)  # else the newest run of other tests
    stopped = number == signal.SIGTERM or arguments[0] in TRAINING
    assert code == (75 if stopped else 130), printed
    said = f"stopped by {number.name}; run the same command again" if stopped else "interrupted"
    assert printed.splitlines()[-1] == f"mu: {said}"
    assert not psutil.Process().children()  # processes that loaded, decoded or rendered


def test_folder_of_samples_says_what_each_image_is(road: Path) -> None:
    prompts = road / "prompts.txt"
    prompts.write_text("Small left effusion.\n\nNormal heart, clear lungs\n")
    code, printed = call(road, "synthesize", "--prompts", prompts, "--out", road / "named")
    assert code == 0, printed
    with (road / "named" / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["prompt"], row["img_savename"]) for row in rows] == [
        ("Small left effusion.", "000000.png"),
        ("Normal heart, clear lungs", "000001.png"),
    ]
    assert all(row["image"] == row["img_savename"] and row["class"] == "" for row in rows)
    assert {row["origin"].rpartition("@")[0] for row in rows} == {"synthetic:priors"}
    lines = [json.loads(line) for line in (road / "named" / "samples.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in rows]
    assert {"seed", "codes", "temperature", "top_k", "top_p", "guidance"} <= lines[0].keys()
    assert Image.open(road / "named" / "000000.png").size == (32, 32)
    assert (road / "named" / "contact.png").exists()


def test_reconstructions_stand_beside_their_originals(road: Path) -> None:
    code, printed = call(road, "synthesize", "--reconstruct", "test", "--n", 13, "--out", road / "rec")
    assert code == 0, printed
    assert len(images(road / "rec")) == 13
    sheet = np.asarray(Image.open(road / "rec" / "contact.png"))
    edge, space = 192, 16  # six times the 32 pixels of an image
    assert sheet.shape[1] == space + 6 * (edge + space)
    second = np.asarray(Image.open(road / "rec" / "000001.png"))
    left = space + 3 * (edge + space)  # after the first pair and the second image
    assert np.array_equal(sheet[space : space + edge : 6, left : left + edge : 6, 0], second)
    caption = sheet[space + edge : space + edge + 30, left : left + edge]
    assert (caption < 128).any()  # something is written under it


def test_figure_has_real_images_their_reconstructions_and_synthetic_ones(road: Path) -> None:
    """Figure 3 of the paper: three rows, drawn at random by the seed; each panel is the image named."""
    ask = ("synthesize", "--n", 12, "--figure", "test")
    code, printed = call(road, *ask, "--out", road / "shown")
    assert code == 0, printed
    assert str(road / "shown" / "figure.png") in printed
    assert call(road, "synthesize", "--reconstruct", "test", "--out", road / "all")[0] == 0
    facts = json.loads((road / "shown" / "figure.json").read_text())
    assert facts["split"] == "phantom/test"
    assert len(set(facts["real"])) == len(set(facts["synthetic"])) == 8
    sheet = np.asarray(Image.open(road / "shown" / "figure.png"))
    assert sheet.shape == (3 * 34 - 2, 8 * 34 - 2)
    lines = [json.loads(line) for line in (road / "all" / "samples.jsonl").read_text().splitlines()]
    rebuilt = {line["key"]: road / "all" / line["image"] for line in lines}
    originals = _images_of(road, "test")
    for column, (key, name) in enumerate(zip(facts["real"], facts["synthetic"], strict=True)):
        top, middle, bottom = (sheet[row : row + 32, column * 34 : column * 34 + 32] for row in (0, 34, 68))
        assert np.array_equal(top, originals[key])
        difference = np.abs(middle.astype(int) - np.asarray(Image.open(rebuilt[key])))
        assert difference.max() <= 1  # a batch of another size may round otherwise
        assert np.array_equal(bottom, np.asarray(Image.open(road / "shown" / name)))
    assert facts["real"] != sorted(facts["real"])
    assert facts["synthetic"] != sorted(facts["synthetic"])
    first = (road / "shown" / "figure.png").read_bytes()
    assert call(road, *ask, "--out", road / "shown")[0] == 0
    assert (road / "shown" / "figure.png").read_bytes() == first
    assert call(road, *ask, "--seed", 1, "--out", road / "other")[0] == 0
    assert json.loads((road / "other" / "figure.json").read_text())["real"] != facts["real"]


def test_scores_of_images_and_the_test_for_copies(road: Path) -> None:
    code, printed = call(road, "score", "model", "--real", "train", "--fake", "valid")
    assert code == 0, printed
    assert "no Inception weights" in printed
    assert "https://" in printed
    result = json.loads((road / "runs/model/results/synthesis-phantom-valid.json").read_text())
    assert result["metrics"][0]["name"] == "encoder FD, validation"
    assert result["extractors"]["encoder"]["checkpoint"] == result["checkpoint"]["hash"]
    assert (result["real"]["name"], result["fake"]["name"]) == ("phantom/train", "phantom/valid")
    for folder, split, ask in (
        ("unasked", "synthetic", ("--n", 6)),
        ("back", "reconstruction", ("--reconstruct", "train", "--n", 6)),
    ):
        assert call(road, "synthesize", *ask, "--out", road / folder)[0] == 0
        assert call(road, "score", "model", "--real", "train", "--fake", road / folder)[0] == 0
        made = json.loads((road / f"runs/model/results/synthesis-phantom-{split}-{folder}.json").read_text())[
            "fake"
        ]
        assert made.pop("own_model") is True
        origin: dict[str, object] = {"reconstructs": "phantom/train"}
        if split == "synthetic":
            drawn = {"seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0}
            origin = {"prompted": False, "prior": "pixelsnail", **drawn}
        assert made == {"name": folder, "n": 6, **origin}
    shutil.copytree(road / "runs/priors", road / "runs/fid")
    recipe = road / "runs/fid/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("inception: ''", "inception: /weights/of/the/recipe.pth"))
    code, printed = call(road, "score", "fid", "--real", "train", "--fake", "valid")
    assert code == 1
    assert "no Inception weights" in printed
    assert "to /weights/of/the/recipe.pth, or" in printed
    code, printed = call(
        road, "score", "fid", "--real", "train", "--fake", "valid", "--inception", "mine.pth"
    )
    assert code == 1
    assert "no Inception weights" in printed
    assert "mine.pth, or" in printed
    code, printed = call(road, "score", "model", "--fake", "valid", "--copies")
    assert code == 0, printed
    assert "no sign of copies" in printed
    memory = road / "memory"
    memory.mkdir()
    random = np.random.default_rng(0)
    for number, image in enumerate(_training_images(road)[:20]):
        noisy = np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(memory / f"{number}.png")
    # whatever the distances are to, copies are of training images
    ask = ("score", "model", "--fake", memory, "--real", "valid", "--extractor", "encoder", "--copies")
    code, printed = call(road, *ask)
    assert code == 0, printed
    assert "COPIES SUSPECTED" in printed
    code, printed = call(road, *ask, "--heldout", "train")
    assert code == 1
    assert "trained on 'train', which is no reference for images it has not seen" in printed
    result = json.loads((road / "runs/model/results/copies-phantom-images-memory.json").read_text())
    assert result["copies_suspected"]
    assert "nearer than unseen" in (road / "runs/model/page/copies-images-memory/index.html").read_text()


def test_memorised_images_are_suspected_although_the_decoder_blurs_them(road: Path) -> None:
    ask = ("synthesize", "--run", "model", "--n", 20, "--out", road / "learnt", "--reconstruct", "train")
    assert call(road, *ask)[0] == 0
    code, printed = call(road, "score", "model", "--fake", road / "learnt", "--copies")
    assert code == 0, printed
    assert "COPIES SUSPECTED" in printed
    result = json.loads((road / "runs/model/results/copies-phantom-reconstruction-learnt.json").read_text())
    coded = result["references"]["reconstructed, to training images reconstructed"]
    assert coded["share"] == 1
    assert all(pair["distance"] < 1e-3 for pair in result["closest"])


def _training_images(road: Path) -> list[np.ndarray]:
    return list(_images_of(road, "train").values())


def _images_of(road: Path, split: str) -> dict[str, np.ndarray]:
    import webdataset

    shards = sorted(str(p) for p in (road / "data/shards/phantom").glob(f"{split}-*.tar"))
    found = webdataset.WebDataset(shards, shardshuffle=False).decode("l8")
    return {sample["__key__"]: sample["png"] if "png" in sample else sample["jpg"] for sample in found}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--n", 0), "0 is not in the range"),
        (("--n", 2, "--out", "FILE/below"), "cannot be written"),
        (("--n", 2, "--out", "OTHER"), "holds other files"),
        (("--prompt", "effusion " * 96), "more than 95 tokens"),
        (("--prompts", "no-such.txt"), "cannot be read"),
        (("--guidance", 2), "needs a prompt"),
        (("--best-of", 2), "needs a prompt"),
        (("--best-of", 2, "--reconstruct", "test"), "is for synthetic images"),
        (("--temperature", -1), "-1.0 is not in the range"),
        (("--run", "nope"), "no run `nope`"),
        (("--prompt", "x", "--prompts", "report"), "exclude each other"),
        (("--figure", "nope"), "nope"),
        (("--figure", "test", "--reconstruct", "test"), "leave one out"),
    ],
)
def test_wrong_requests_get_one_line(road: Path, tmp_path: Path, arguments: tuple, said: str) -> None:  # type: ignore[type-arg]
    (tmp_path / "FILE").write_text("")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "thesis.docx").write_text("")
    typed = [str(tmp_path / a) if str(a).startswith(("FILE", "OTHER")) else a for a in arguments]
    code, printed = call(road, "synthesize", "--out", tmp_path / "out", *typed)
    assert code in (1, 2), printed
    assert said in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "OTHER" / "settings.json").exists()


def test_samples_of_other_settings_are_not_mixed(road: Path, tmp_path: Path) -> None:
    assert call(road, "synthesize", "--n", 2, "--out", tmp_path / "x")[0] == 0
    before = images(tmp_path / "x")
    code, printed = call(road, "synthesize", "--n", 4, "--out", tmp_path / "x", "--seed", 5)
    assert code == 1
    assert "seed was 0, now 5" in printed
    assert images(tmp_path / "x") == before


def test_damaged_codes_and_priors_of_another_run(road: Path) -> None:
    code, printed = call(road, "synthesize", "--n", 1, "--run", "second", "--out", road / "s")
    assert code == 1
    assert "no priors were fitted on this run" in printed
    shutil.copytree(road / "runs/priors", road / "runs/cut")
    codes = road / "runs/cut/codes.h5"
    codes.write_bytes(codes.read_bytes()[:3000])
    code, printed = call(road, "fit-prior", PRIORS, "--name", "cut")
    assert code == 1
    assert "codes.h5: damaged or incomplete" in printed
    shutil.copytree(road / "runs/priors", road / "runs/strange")
    recipe = road / "runs/strange/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("pretrained: model", "pretrained: second"))
    for verb in (
        ("synthesize", "--n", 1, "--run", "strange", "--out", road / "s"),
        ("fit-prior", PRIORS, "--name", "strange"),
    ):
        code, printed = call(road, *verb)
        assert code == 1
        assert "another" in printed
        assert "Traceback" not in printed


def test_priors_that_diverged_say_so(road: Path) -> None:
    run = road / "runs/nan"
    shutil.copytree(road / "runs/priors", run)
    last = store.newest(run / "checkpoints")
    assert last is not None
    last.tensors["model"]["top.head.bias"].fill_(float("nan"))
    store.save(run / "checkpoints", store.Checkpoint(7, last.tensors, last.facts), keep=1)
    code, printed = call(road, "synthesize", "--n", 1, "--run", "nan", "--out", road / "nan")
    assert code == 1
    assert "NaN or infinite logits" in printed


def test_priors_without_text_refuse_a_prompt(road: Path) -> None:
    ask = ("fit-prior", PRIORS, "--name", "plain", "-o", "prior.condition=none", "-o", "train.steps=2")
    code, printed = call(road, *ask)
    assert code == 0, printed
    assert "without text" not in printed
    code, printed = call(road, "synthesize", "--run", "plain", "--prompt", "effusion", "--out", road / "p")
    assert code == 1
    assert "were fitted without text" in printed
