"""`mu check`: what a run would miss is found beforehand, all of it, without a network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
import webdataset
from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from tests.hand_made import sample

SPLITS = ("train", "valid", "test")


@pytest.fixture(autouse=True)
def offline(prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No socket may be opened; the hub's cache is empty."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("mu check tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "runs"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom, three splits of 10 samples in two shards each."""
    folder = tmp_path_factory.mktemp("prepared") / "shards"
    sizes = [word for split in SPLITS for word in ("-o", f"{split}=10")]
    args = ["prepare", "phantom", "--out", str(folder), "--size", "64", "--shard-size", "5", "--workers", "1"]
    result = CliRunner().invoke(mu, [*args, *sizes])
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture
def shards(prepared: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "shards"))


def check(*args: str) -> Result:
    return CliRunner().invoke(mu, ["check", *args])


def problems(result: Result) -> list[str]:
    return [line for line in result.stdout.splitlines() if line.startswith("problem")]


def test_ready(shards: Path) -> None:
    result = check("demo", "-o", f"data.shards={shards}", "--hashes")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "demo is ready"
    assert "10 samples in 2 shards (hashes checked)" in result.stdout
    counted = "texts: samples with text in impression: train 10 of 10, valid 10 of 10, test 10 of 10"
    assert counted in result.stdout


def test_as_json_for_a_script(shards: Path) -> None:
    result = check("demo", "-o", f"data.shards={shards}", "-o", "data.sections=[none]", "--format", "json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert [row["check"] for row in rows if row["state"] == "problem"] == ["texts"]
    assert len(rows) > 10


def test_a_split_of_which_a_part_has_text_is_counted(tmp_path: Path) -> None:
    for split in SPLITS:
        with webdataset.TarWriter(str(tmp_path / f"{split}-000000.tar")) as writer:
            for number in range(3):
                text = b"Clear lungs." if number == 1 or split == "train" else b" "
                writer.write({"__key__": f"{split}{number}", "png": sample(0)[1], "txt": text})
    result = check("demo", "-o", f"data.shards={tmp_path}", "-o", "data.sections=[caption]")
    assert "samples with text in caption: train 3 of 3, valid 1 of 3, test 1 of 3" in result.stdout


def test_a_split_without_text_in_the_sections_asked_for(shards: Path) -> None:
    """What `mu pretrain` would fail on: there is nothing to learn a vocabulary from."""
    result = check("demo", "-o", f"data.shards={shards}", "-o", "data.sections=[clinical_notes]")
    assert result.exit_code == 1
    (problem,) = problems(result)
    assert "data.sections: no sample of 'train', 'valid', 'test' has text in clinical_notes" in problem
    assert "sections there: findings, impression." in problem
    assert "`-o 'data.sections=[]'`" in problem


def test_data_of_labels_alone_are_for_fine_tuning(tmp_path: Path) -> None:
    for split in SPLITS:
        with webdataset.TarWriter(str(tmp_path / f"{split}-000000.tar")) as writer:
            labels = json.dumps({"sections": {"findings": " "}, "labels": {"Edema": 1}}).encode()
            writer.write({"__key__": "1", "png": sample(0)[1], "json": labels})
    (problem,) = problems(check("demo", "-o", f"data.shards={tmp_path}"))
    said = "this data set has no texts, which `mu pretrain` needs; `mu finetune` does not"
    assert problem == f"problem  texts: {said}"


def test_captions_are_named_and_can_be_chosen(tmp_path: Path) -> None:
    for split in SPLITS:
        with webdataset.TarWriter(str(tmp_path / f"{split}-000000.tar")) as writer:
            writer.write({"__key__": "1.2", "png": sample(0)[1], "txt": b"Clear lungs."})
    (problem,) = problems(check("demo", "-o", f"data.shards={tmp_path}"))
    assert "sections there: caption." in problem
    result = check("demo", "-o", f"data.shards={tmp_path}", "-o", "data.sections=[caption]")
    assert result.exit_code == 0, result.stdout


def test_all_problems_at_once_with_what_to_do(shards: Path) -> None:
    cut = shards / "train-000000.tar"
    cut.write_bytes(cut.read_bytes()[:-100])
    (shards / "train-000001.tar").unlink()
    result = check(
        "demo",
        "-o", f"data.shards={shards}",
        "-o", "data.test=exam",
        "-o", "text.tokenizer=some/tokenizer",
        "-o", "model.vit.weights=some/vit",
        "-o", "model.qformer.weights=some/bert",
        "-o", "data.image_size=60",
        "-o", "train.global_batch=36",
        "-o", "train.micro_batch=12",
        "--num-processes", "2",
    )  # fmt: skip
    assert result.exit_code == 1
    expected = [
        ("shards of train", "train-000000.tar"),
        ("shards of train", "train-000001.tar: listed in the manifest but missing"),
        ("shards of exam", "no split 'exam'; available: test, train, valid"),
        ("tokenizer", "`hf download some/tokenizer "),
        ("image encoder weights", "`hf download some/vit`"),
        ("text encoder weights", "`hf download some/bert`"),
        ("model", "60"),
        ("batch", "36 is not a multiple of 12 pairs x 2 processes"),
    ]
    found = problems(result)
    for line, (name, message) in zip(found, expected, strict=True):
        assert line.startswith(f"problem  {name}: ")
        assert message in line
    assert result.stderr == "mu: demo is not ready: 8 problems, listed above\n"


def test_changed_shard_of_the_same_size_is_found_by_its_hash(shards: Path) -> None:
    path = shards / "valid-000001.tar"
    body = bytearray(path.read_bytes())
    body[700] ^= 1
    path.write_bytes(bytes(body))
    assert check("demo", "-o", f"data.shards={shards}").exit_code == 0
    (line,) = problems(check("demo", "-o", f"data.shards={shards}", "--hashes"))
    assert "valid-000001.tar: its contents differ from the manifest" in line


@pytest.mark.parametrize(("held", "good"), [(32, False), (64, True), (224, True)])
def test_shards_smaller_than_the_recipe_wants(shards: Path, held: int, good: bool) -> None:
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["image"]["size"] = held
    (shards / "manifest.json").write_text(json.dumps(manifest))
    found = problems(check("demo", "-o", f"data.shards={shards}"))
    assert ([] if good else ["64 pixels wanted, the shards hold 32"]) == [
        line.split("data.image_size: ")[1].split(";")[0] for line in found
    ]


def test_nothing_prepared_is_one_problem_that_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path))
    (line,) = problems(check("demo"))
    assert line == f"problem  shards: {tmp_path}/shards/phantom: no such folder; run `mu prepare phantom`"


def test_weights_in_the_cache_and_in_a_folder_are_found(shards: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--some--bert" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(b"")
    local = tmp_path / "vit"
    local.mkdir()
    (local / "model.safetensors").write_bytes(b"")
    result = check(
        "demo", "-o", f"data.shards={shards}", "-o", "model.qformer.weights=some/bert",
        "-o", f"model.vit.weights={local}",
    )  # fmt: skip
    assert result.exit_code == 0, result.stdout


def test_paper_recipe_names_every_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path))
    found = "\n".join(problems(check("full")))
    assert "`hf download timm/eva_giant_patch14_clip_224.laion400m" in found
    assert found.count("`hf download microsoft/BiomedVLP-CXR-BERT-general") == 2


def test_unknown_model_offers_the_nearest(shards: Path) -> None:
    name = "vit_tiny_patch16_2244"
    found = problems(check("demo", "-o", f"data.shards={shards}", "-o", f"model.vit.name={name}"))
    assert f"timm has no model {name}; did you mean vit_tiny_patch16_224?" in found[0]


def test_runs_folder_that_cannot_be_written(
    shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MU_RUNS", str(tmp_path / "file" / "runs"))
    (line,) = problems(check("demo", "-o", f"data.shards={shards}"))
    assert "set MU_RUNS to another folder" in line


def test_a_vocabulary_with_capitals_and_no_configuration_is_named(shards: Path, tmp_path: Path) -> None:
    cased = tmp_path / "cased"
    cased.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "COPD", "Effusion"]
    (cased / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    args = ("demo", "-o", f"data.shards={shards}", "-o", f"text.tokenizer={cased}")
    (line,) = (line for line in check(*args).stdout.splitlines() if "tokens with [DEC]" in line)
    assert "read as uncased, so 2 tokens with capitals are never used" in line
    assert '{"do_lower_case": false}' in line
    (cased / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    (line,) = (line for line in check(*args).stdout.splitlines() if "tokens with [DEC]" in line)
    assert "uncased" not in line
