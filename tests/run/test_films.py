"""A person's own films on tiny runs: predictions, likeness to training films, where answers come from."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import medunifier
from medunifier_cli.checkpoint.classifier import restore_classifier
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.data.shards import Shards
from medunifier_cli.evaluate.films.likeness import FILE, likeness_of, reference_of
from medunifier_cli.run.record import Run
from medunifier_cli.stages import finetune
from tests.run.finetune_runs import FinetuneRuns
from tests.run.small_run import Mu, call


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-training run `small`, two fine-tuned from it, and some of its test films as files."""
    root = tmp_path_factory.mktemp("films")
    runs = FinetuneRuns(root)
    for name, more in (("many", "model.freeze=false"), ("one", "model.loss=cross_entropy")):
        finetune.run_finetuning(runs.recipe(more, "train.steps=2", "data.test="), root / "runs" / name)
    shards = Shards.open(runs.shards, "test")
    (root / "films").mkdir()
    for row in range(6):
        (root / "films" / f"{shards.key(row)}.png").write_bytes(shards.image(row))
    random = np.random.default_rng(0)
    (root / "strange").mkdir()
    Image.fromarray(random.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(root / "strange/noise.png")
    return root


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_RUNS", str(root / "runs"))


@pytest.fixture
def mu(root: Path) -> Mu:
    from click.testing import CliRunner

    from medunifier_cli.cli import mu as group

    return lambda *words: CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def films(root: Path) -> list[Path]:
    return sorted((root / "films").iterdir())


def logits(root: Path, name: str, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:  # type: ignore[type-arg]
    """What the head of a run says of one film, read alone."""
    trained, network, classes = restore_classifier(Run(root / "runs" / name))
    grey = torch.from_numpy(np.array(Image.open(path)).copy())[None, None]
    with torch.no_grad():
        query = trained.model.encode_image(grey.expand(-1, 3, -1, -1) / 255.0).query_BQD
        return network.head(query)[0].double().numpy(), classes


def test_predictions_are_those_of_each_film_alone(root: Path, mu: Mu, films: list[Path]) -> None:
    for name in ("many", "one"):
        done = mu("predict", root / "films", "--run", name, "--format", "json", "--batch-size", "4")
        rows = json.loads(done.stdout)
        assert [row["file"] for row in rows] == [str(path) for path in films]
        for row, path in zip(rows, films, strict=True):
            values, classes = logits(root, name, path)
            odds = np.exp(values)
            wanted = odds / odds.sum() if name == "one" else odds / (1 + odds)
            assert row["probabilities"] == pytest.approx(dict(zip(classes, wanted, strict=True)), abs=1e-5)
            if name == "one":
                assert row["class"] == classes[int(wanted.argmax())]
            else:
                assert row["found"] == [c for c, p in zip(classes, wanted, strict=True) if p >= 0.5]
            assert row["origin"]["pretrained"] == "small"
            assert row["note"] == "Not for diagnosis."
        answers = medunifier.load(root / "runs" / name, "cpu").predict(films)
        assert [answer.probabilities for answer in answers] == [
            pytest.approx(row["probabilities"], abs=1e-5) for row in rows
        ]


def test_each_format_names_origin_and_unlike_films(root: Path, mu: Mu, films: list[Path]) -> None:
    long = root / "strange" / ("a-rather-long-name-" * 8 + ".png")
    shutil.copyfile(root / "strange" / "noise.png", long)
    text = mu("predict", films[0], long, "--run", "many").stdout.splitlines()
    assert text[1].endswith(str(films[0]))
    assert text[2].endswith(f"unlike  {long}")
    assert text[3].startswith("1 of 2 films are unlike those that the model was trained on")
    assert text[4].startswith("From many, step 2, checkpoint ")
    assert text[5] == "Not for diagnosis."
    (row,) = csv.DictReader(mu("predict", long, "--run", "many", "--format", "csv").stdout.splitlines())
    assert (row["unlike"], row["run"], row["trained_on"]) == ("True", "many", "phantom")
    assert float(row["percentile"]) == 100
    table = mu("predict", films[0], "--run", "many", "--format", "markdown", "--no-likeness").stdout
    assert table.startswith("| file")
    assert "unlike" not in table
    refused = mu("predict", films[0], "--run", "small")
    assert refused.exit_code == 1
    assert "not a run of `mu finetune`" in refused.stderr


def test_films_of_the_data_are_like_it_and_noise_is_not(root: Path) -> None:
    trained = restore(Run(root / "runs" / "small"))
    shards = Shards.open(root / "shards", "test")
    held_out = torch.stack([_grey(shards.image(row)) for row in range(40)])
    noise = torch.randint(0, 256, (20, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    seen = likeness_of(trained, held_out)
    assert sum(bool(one.unlike) for one in seen) <= 4  # of 40, by the 30 films of the other split
    assert all(one.unlike and one.percentile == 100 for one in likeness_of(trained, noise))
    reference = reference_of(trained)
    assert reference.held_out.shape == (30,)
    share = np.mean([[other < one.distance for other in reference.held_out] for one in seen], axis=1)
    assert [one.percentile for one in seen] == pytest.approx(100 * share, abs=0.01)


def _grey(png: bytes) -> torch.Tensor:
    import io

    return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("L")).copy())[None]


def test_without_training_films_no_verdict_but_what_was_kept_is_used(root: Path, tmp_path: Path) -> None:
    film = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    trained = restore(Run(root / "runs" / "small"))
    (kept,) = likeness_of(trained, film)
    moved = root / "elsewhere"
    (root / "shards").rename(moved)
    try:
        assert likeness_of(trained, film) == [kept]
        (root / "runs" / "small" / "cache" / FILE).unlink()
        (gone,) = likeness_of(trained, film)
        assert gone.unlike is None
        assert "not on this machine" in gone.why
        shutil.copytree(moved, root / "shards")
        manifest = root / "shards" / "manifest.json"
        content = json.loads(manifest.read_text())
        (root / "shards" / "train-000000.tar").unlink()
        for path in moved.glob("test*"):
            shutil.copyfile(path, root / "shards" / path.name.replace("test", "train"))
        content["splits"]["train"] = content["splits"]["test"]
        manifest.write_text(json.dumps(content).replace("test-0", "train-0"))
        (other,) = likeness_of(trained, film)
        assert other.unlike is None
        assert other.why
    finally:
        shutil.rmtree(root / "shards", ignore_errors=True)
        moved.rename(root / "shards")
    assert call(tmp_path, "show", root / "runs" / "small")[0] == 0


def odds_of(root: Path, path: Path, prompts: dict[str, str]) -> dict[str, float]:
    """Largest cosine of a film to each prompt divided by the temperature, by the package's embeddings."""
    model = medunifier.load(root / "runs" / "small", "cpu")
    cosine = (model.embed_image(path)[0] @ model.embed_text(list(prompts.values())).T).max(axis=0)
    scale = float(model.trained.model.temperature)
    return dict(zip(prompts, (cosine / scale).tolist(), strict=True))


def test_own_classes_one_of_them_or_several(root: Path, mu: Mu, films: list[Path], tmp_path: Path) -> None:
    own = {"Effusion": "Large left pleural effusion.", "Big heart": "The heart is enlarged."}
    words = [word for name, prompt in own.items() for word in ("--class", f"{name}={prompt}")]
    nothing = "No acute cardiopulmonary abnormality."
    done = mu("zeroshot", films[0], "--run", "small", *words, "--no-finding", "--format", "json")
    (row,) = json.loads(done.stdout)
    odds = odds_of(root, films[0], {**own, "No Finding": nothing})
    whole = sum(np.exp(value) for value in odds.values())
    wanted = {name: np.exp(value) / whole for name, value in odds.items()}
    assert row["probabilities"] == pytest.approx(wanted, abs=1e-4)
    assert row["class"] == max(wanted, key=wanted.__getitem__)
    assert row["origin"]["run"] == "small"
    assert row["likeness"]["unlike"] is not None
    classes = tmp_path / "classes.yaml"
    classes.write_text("Effusion: [Large left pleural effusion.]\nno effusion: [No pleural effusion.]\n")
    several = ("--classes", classes, words[2], words[3], "--multi-label", "--threshold", "0.3")
    (row,) = json.loads(mu("zeroshot", films[0], "--run", "small", *several, "--format", "json").stdout)
    against = {"Effusion": "No pleural effusion.", "Big heart": "No big heart."}
    absent = odds_of(root, films[0], against)
    wanted = {name: 1 / (1 + np.exp(absent[name] - odds[name])) for name in own}
    assert row["probabilities"] == pytest.approx(wanted, abs=1e-4)
    assert row["found"] == [name for name in own if wanted[name] >= 0.3]
    shown = mu("zeroshot", films[0], "--run", "small", *words, "--no-likeness").stdout.splitlines()
    assert shown[0].split() == ["Effusion", "Big", "heart", "file"]
    assert shown[1].endswith(str(films[0]))
    assert shown[-1] == "Not for diagnosis."
    for wrong, why in (
        (("--class", "Effusion"), "NAME=PROMPT"), (words[:2], "one class alone"),
        ((*words, "--prompts", "report"), "of a data set's classes"),
    ):  # fmt: skip
        refused = mu("zeroshot", films[0], "--run", "small", *wrong)
        assert refused.exit_code in (1, 2)
        assert why in refused.stderr


def test_embeddings_of_files_and_of_a_split(root: Path, mu: Mu, films: list[Path], tmp_path: Path) -> None:
    wanted = medunifier.load(root / "runs" / "small", "cpu").embed_image(films)
    for name in ("own.npz", "own.parquet"):
        done = mu("embed", root / "films", "--run", "small", "--out", tmp_path / name, "--batch-size", "4")
        assert "6 embeddings of small, step 2" in done.stdout
    with np.load(tmp_path / "own.npz") as found:
        assert found["id"].tolist() == [str(path) for path in films]
        assert found["image"] == pytest.approx(wanted, abs=1e-5)
        assert json.loads(str(found["origin"]))["run"] == "small"
        assert "text" not in found
    table = parquet.read_table(tmp_path / "own.parquet")
    assert table["id"].to_pylist() == [str(path) for path in films]
    assert np.array(table["image"].to_pylist()).reshape(wanted.shape) == pytest.approx(wanted, abs=1e-5)
    facts = json.loads(table.schema.metadata[b"medunifier"])
    assert (facts["queries"], facts["width"]) == wanted.shape[1:]
    done = mu("embed", "--split", "test", "--run", "small", "--out", tmp_path / "split.npz")
    assert done.exit_code == 0
    with np.load(tmp_path / "split.npz") as found:
        assert found["image"].shape == (40, *wanted.shape[1:])
        assert np.linalg.norm(found["text"], axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    assert mu("embed", films[0], "--run", "small", "--out", tmp_path / "own.csv").exit_code == 1
    assert mu("embed", "--run", "small", "--out", tmp_path / "own.npz").exit_code == 2


def test_own_films_are_reconstructed(root: Path, mu: Mu, films: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("synthesize", "--reconstruct", *films[:2], "--run", "small", "--out", out, "--format", "json")
    done = mu(*words)
    assert done.exit_code == 0, done.output
    model = medunifier.load(root / "runs" / "small", "cpu")
    for number, row in enumerate(json.loads(done.stdout)):
        (wanted,) = model.decode(model.encode(films[number]))
        found = np.asarray(Image.open(out / f"{number:06d}.png"))
        assert (found == np.asarray(wanted)).all()
        film = np.asarray(Image.open(films[number])) / 255.0
        assert row["psnr"] == pytest.approx(-10 * np.log10(((film - found / 255.0) ** 2).mean()), abs=0.01)
        assert row["origin"]["run"] == "small"
    assert mu(*words[:4], "--run", "small", "--out", tmp_path / "more", "--n", "1").exit_code == 2
    assert mu("synthesize", films[0], "--run", "small").exit_code == 2


def test_a_batch_without_a_readable_film_moves_no_answer(root: Path, mu: Mu, tmp_path: Path) -> None:
    good = sorted((root / "films").iterdir())[:2]
    bad = [tmp_path / "text.png", tmp_path / "empty.png"]
    bad[0].write_text("no image")
    bad[1].touch()
    files = (bad[0], good[0], bad[1], tmp_path, good[1])
    alone = json.loads(mu("zeroshot", *good, "--run", "small", *OWN, "--format", "json").stdout)
    done = mu("zeroshot", *files, "--run", "small", *OWN, "--format", "json", "--batch-size", "1")
    rows = json.loads(done.stdout)
    assert [row["file"] for row in rows] == [str(path) for path in good]
    for row, wanted in zip(rows, alone, strict=True):
        assert row["similarities"] == pytest.approx(wanted["similarities"], abs=1e-4)
        assert row["likeness"]["distance"] == pytest.approx(wanted["likeness"]["distance"], abs=1e-2)
    assert [str(path) in done.stderr for path in files] == [True, False, True, True, False]
    assert "3 of 5 files left out" in done.stderr
    done = mu("embed", bad[0], *good, "--run", "small", "--out", tmp_path / "e.npz", "--batch-size", "1")
    assert done.exit_code == 0
    with np.load(tmp_path / "e.npz") as found:
        assert found["id"].tolist() == [str(path) for path in good]
    done = mu("report", bad[0], good[0], "--run", "small", "--sample", "greedy", "--format", "csv")
    assert mu("predict", bad[0], bad[0], "--run", "many").exit_code == 1
    first, second = csv.DictReader(done.stdout.splitlines())
    assert (first["report"], first["unlike"], second["skipped"]) == ("", "", "")
    assert first["skipped"]
    assert (second["unlike"], second["run"], second["note"]) == ("False", "small", "Not for diagnosis.")


OWN = ("--class", "A=Left effusion.", "--class", "B=The heart is enlarged.")


def test_a_threshold_names_classes_in_tables(mu: Mu, films: list[Path]) -> None:
    ask = ("--format", "csv", "--no-likeness", "--threshold")
    (row,) = csv.DictReader(mu("predict", films[0], "--run", "many", *ask, "0.001").stdout.splitlines())
    assert len(row["found"].split("; ")) == 5
    (row,) = csv.DictReader(mu("predict", films[0], "--run", "many", *ask, "1").stdout.splitlines())
    assert row["found"] == ""
    refused = mu("predict", films[0], "--run", "one", *ask, "0.5")
    assert refused.exit_code == 2
    assert "gives each film one class" in refused.stderr
    for more, column in (((), "class"), (("--multi-label",), "found")):
        done = mu("zeroshot", films[0], "--run", "small", *OWN, *more, *ask, "1")
        (row,) = csv.DictReader(done.stdout.splitlines())
        assert row[column] == ""


def test_no_finding_negates_every_class(root: Path, mu: Mu, films: list[Path]) -> None:
    nothing, ask = "No acute disease.", ("--run", "small", "--multi-label", "--format", "json")
    given = mu("zeroshot", films[0], *ask, *OWN, "--no-finding", nothing).stdout
    (row,) = json.loads(mu("zeroshot", films[0], *ask, *OWN, "--class", f"No Finding={nothing}").stdout)
    assert [row] == json.loads(given)
    odds = odds_of(root, films[0], {"A": "Left effusion.", "own": "No a.", "nothing": nothing})
    wanted = 1 / (1 + np.exp(max(odds["own"], odds["nothing"]) - odds["A"]))
    assert row["probabilities"]["A"] == pytest.approx(wanted, abs=1e-4)


def test_what_does_not_go_together_is_refused(mu: Mu, films: list[Path], tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("{}\n")
    film, out = films[0], ("--out", tmp_path / "out")
    for words, code, why in (
        (("zeroshot", "--no-finding", film, film, *OWN), 2, "behind the files"),
        (("zeroshot", film, "--classes", tmp_path / "none.yaml", "--multi-label"), 1, "no class"),
        (("zeroshot", film, "--class", "No Finding=Clear.", "--multi-label"), 1, "add a class"),
        (("synthesize", "--reconstruct", film, "--prompt", "x", "--edit", film), 2, "leave one out"),
        (("synthesize", "--reconstruct", "gone.png", film, *out), 1, "gone.png: no such file"),
        (("synthesize", "--reconstruct", "gone.png", *out), 1, "gone.png: no such file"),
        (("retrieve", "--image", "gone.png"), 1, "gone.png: no such file"),
    ):  # fmt: skip
        refused = mu(*words, "--run", "small")
        assert refused.exit_code == code, refused.output
        assert why in refused.stderr
        assert "left out" not in refused.stderr
    assert not (tmp_path / "out").exists()


def test_films_that_have_changed_are_not_resumed(mu: Mu, films: list[Path], tmp_path: Path) -> None:
    film, out = tmp_path / "film.png", tmp_path / "out"
    shutil.copyfile(films[0], film)
    words = ("synthesize", "--reconstruct", film, "--run", "small", "--out", out, "--no-likeness")
    assert [mu(*words).exit_code for _ in range(2)] == [0, 0]
    shutil.copyfile(films[1], film)
    refused = mu(*words)
    assert refused.exit_code == 1
    assert "other settings" in refused.stderr


def test_of_weights_that_diverged_nothing_is_told(root: Path) -> None:
    trained = restore(Run(root / "runs" / "small"))
    trained.run.cache.joinpath(FILE).unlink(missing_ok=True)
    with torch.no_grad():
        trained.model.vision_norm.weight.fill_(float("nan"))
    reference = reference_of(trained)
    assert reference.cloud is None
    assert "not finite" in reference.why
    assert not trained.run.cache.joinpath(FILE).exists()
