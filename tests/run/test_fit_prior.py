"""`mu fit-prior` on a small phantom: its result, two ranks, stops, and what `mu check` says beforehand."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medunifier_cli.checkpoint import store
from medunifier_cli.evaluate.benchmark import count_samples
from medunifier_cli.run.log import read_log
from tests import warm
from tests.folders import ROOT
from tests.run import sharing_ranks
from tests.run.small_priors import PRIORS, call, fit_small_priors
from tests.unit.distributed.test_lifeline import Outcomes


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a pre-training run `model` and its priors `priors` under one folder."""
    return fit_small_priors(tmp_path_factory.mktemp("priors"))


SHARED = {
    "_embedded", "_match_block", "_reports", "_sample_images", "_reconstructed", "_answered", "_features_of",
    "_reports_of_files", "query_means", "_seen", "_most_correlated",
}  # fmt: skip
"""What takes long in the verbs that measure, by the function that does it."""


def test_every_verb_gives_on_two_ranks_what_one_process_gives(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit of every file, and what is printed is printed once; both ranks compute."""
    printed, written = [], []
    for ranks in (1, 2):
        for name in ("data", "runs/model", "runs/priors"):
            shutil.copytree(road / name, tmp_path / name)
        monkeypatch.setenv("MU_DATA", str(tmp_path / "data"))
        monkeypatch.setenv("MU_RUNS", str(tmp_path / "runs"))
        before = set(_files(tmp_path))
        printed.append(_alone(tmp_path) if ranks == 1 else _on_two_ranks(tmp_path))
        written.append({name: body for name, body in _files(tmp_path).items() if name not in before})
        if ranks == 1:
            shutil.rmtree(tmp_path / "data")
            shutil.rmtree(tmp_path / "runs")
            shutil.rmtree(tmp_path / "out")
    assert printed[0] == printed[1] != ""
    assert "cache/embeddings-phantom-test.h5" in " ".join(written[0])
    assert sorted(written[1]) == sorted(written[0])
    assert [name for name, body in written[0].items() if written[1][name] != body] == []
    computed = [json.loads((tmp_path / f"rank-{number}.json").read_text()) for number in (0, 1)]
    assert [set(of_rank) for of_rank in computed] == [SHARED, SHARED]
    assert all(min(of_rank.values()) > 0 for of_rank in computed), json.dumps(computed)


def test_samples_are_counted_by_the_manifest(road: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To choose how many processes share the work."""
    monkeypatch.setenv("MU_DATA", str(road / "data"))
    monkeypatch.setenv("MU_RUNS", str(road / "runs"))
    (road / "keys.txt").write_text("a\nb\n")
    assert count_samples("model", split="test") == 40
    assert count_samples("priors", split="valid") == 30
    assert count_samples("model", ids=road / "keys.txt") == 2
    assert count_samples("model", split="nope") == 1, "the verb says so"


def _files(root: Path) -> dict[str, bytes]:
    """All files of the verbs; but caches of folders of images are named by when these were written."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for place in (root / "out", root / "runs")
        for path in place.rglob("*")
        if path.is_file() and not path.name.startswith("pooled-")
    }


def _alone(root: Path) -> str:
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        sharing_ranks.small_blocks(patch)
        sharing_ranks.run_all(root)
    return printed.getvalue()


def _on_two_ranks(root: Path) -> str:
    command = [sys.executable, "-m", "tests.run.sharing_ranks", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, cwd=ROOT, env=environment, timeout=400, check=True)
    outcomes = Outcomes(root / "ranks")
    assert outcomes.codes["everything"] == [0, 0], outcomes.printed("everything", 0)
    assert outcomes.printed("everything", 1, "out") == ""
    return outcomes.printed("everything", 0, "out")


@pytest.mark.slow
def test_ranks_of_torchrun_and_of_the_option_write_the_reports_of_one_process(
    road: Path, tmp_path: Path
) -> None:
    words = ["report", "--run", "model", "--split", "test", "--max-tokens", "9", "--out"]
    started = {
        "one": ["-m", "medunifier_cli", *words],
        "option": ["-m", "medunifier_cli", *words, "option", "--num-processes", "2"],
        # without `--` it takes `--run` for one of its own
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--",
                     "medunifier_cli", *words],
    }  # fmt: skip
    environment = {
        **os.environ, "MU_DATA": str(road / "data"), "MU_RUNS": str(road / "runs"), "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    shown = {}
    for name, command in started.items():
        command = [sys.executable, *command] + ([] if name in command else [name])
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr
        shown[name] = done.stdout, {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert shown["one"] == shown["option"] == shown["torchrun"]


def test_result_gives_nats_beside_the_unigrams(road: Path) -> None:
    result = json.loads((road / "runs/priors/results/priors-phantom-valid.json").read_text())
    metrics = {metric["name"]: metric for metric in result["metrics"]}
    for level in ("top", "bottom"):
        metric = metrics[f"{level} prior, nats per code"]
        assert 0 < metric["value"] < np.log(16) + 1
        assert metric["floor"] == result["baseline"][level]["unigram"]
        assert f"{level} prior without text, nats per code" in metrics
    assert result["n"] == 30


def test_stopped_and_resumed_equals_not_stopped(road: Path) -> None:
    whole, half = road / "runs/priors", road / "runs/half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints/step-00000006")
    code, printed = call(road, "fit-prior", PRIORS, "--name", "half")
    assert code == 0, printed
    for name in ("model", "optimizer"):
        a, b = (load_file(run / f"checkpoints/step-00000006/{name}.safetensors") for run in (whole, half))
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a)


def test_check_says_whether_priors_can_be_fitted(road: Path, tmp_path: Path) -> None:
    code, printed = call(road, "check", PRIORS)
    assert code == 0, printed
    assert "pre-trained run" in printed
    assert "samples in" in printed
    code, printed = call(road, "check", PRIORS, "-o", "prior.pretrained=nowhere")
    assert code == 1
    assert "nowhere" in printed
    code, printed = call(road, "check", PRIORS, "-o", f"inception={tmp_path / 'inception.pth'}")
    assert code == 1
    assert "problem  Inception weights" in printed
    assert "fetch https://" in printed


def start(root: Path, *arguments: object) -> warm.Warm:
    """`mu ARGUMENTS` as a process of its own."""
    env = {**os.environ, "MU_DATA": str(root / "data"), "MU_RUNS": str(root / "runs")}
    return warm.start(["-m", "medunifier_cli", *arguments], env=env)


def test_two_ranks_fit_what_one_does(road: Path) -> None:
    steady = ("-o", "prior.top.dropout=0", "-o", "prior.bottom.dropout=0")  # which each rank draws for itself
    ask = ("fit-prior", PRIORS, "--run", "model", *steady)
    code, printed = call(road, *ask, "--name", "one", "-o", "train.micro_batch=8")
    assert code == 0, printed
    process = start(road, *ask, "--name", "two", "-o", "train.micro_batch=4", "--num-processes", 2)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    with h5py.File(road / "runs/one/codes.h5") as one, h5py.File(road / "runs/two/codes.h5") as two:
        for split in ("train", "valid"):
            for level in ("top", "bottom"):
                assert np.array_equal(one[f"{split}/{level}"][...], two[f"{split}/{level}"][...])
    logs = [read_log(road / "runs" / name / "log.jsonl") for name in ("one", "two")]
    for one, two in zip(*logs, strict=True):
        assert one["step"] == two["step"]
        assert one["total"] == pytest.approx(two["total"], rel=1e-4)
    a, b = (store.newest(road / "runs" / name / "checkpoints") for name in ("one", "two"))
    assert a is not None
    assert b is not None
    assert b.facts["ranks"] == 2
    for key, tensor in a.tensors["model"].items():
        torch.testing.assert_close(tensor, b.tensors["model"][key], rtol=1e-3, atol=1e-4)


def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(road: Path) -> None:
    settings = ("train.steps=60", "train.checkpoint_every=60", "train.valid_every=60")
    overrides = [word for setting in settings for word in ("-o", setting)]
    ask = ("fit-prior", PRIORS, "--name", "stopped", "--run", "model", *overrides)
    process = start(road, *ask)
    log = road / "runs/stopped/log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > 2):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed
    assert "stopped by SIGUSR1" in printed
    assert 0 < store.steps(road / "runs/stopped/checkpoints")[-1] < 60
    for name in ("stopped", "calm"):
        code, printed = call(road, *ask[:3], name, *ask[4:])
        assert code == 0, printed
    for name in ("model", "optimizer"):
        a, b = (
            load_file(road / f"runs/{run}/checkpoints/step-00000060/{name}.safetensors")
            for run in ("stopped", "calm")
        )
        assert all(a[key].equal(b[key]) for key in a | b)


def test_other_shards_under_priors_are_refused(road: Path) -> None:
    """Even where the codes of the earlier ones are still there."""
    shutil.copytree(road / "runs/priors", road / "runs/earlier")
    manifest = road / "data/shards/phantom/manifest.json"
    before = manifest.read_text()
    content = json.loads(before)
    content["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    code, printed = call(road, "fit-prior", PRIORS, "--name", "earlier")
    manifest.write_text(before)
    assert code == 1
    assert "split 'train' of phantom has changed since" in printed
    assert "--fresh" in printed
    assert call(road, "fit-prior", PRIORS, "--name", "earlier")[0] == 0


MASKED = (
    "-o", "prior.kind=masked", "-o", "prior.masked.width=16", "-o", "prior.masked.layers=1",
    "-o", "prior.masked.heads=2", "-o", "prior.masked.top_rounds=2", "-o", "prior.masked.bottom_rounds=3",
    "-o", "prior.codebook_vectors=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def masked(road: Path) -> Path:
    """A masked prior on the same model, as run `masked`."""
    code, printed = call(road, "fit-prior", PRIORS, "--name", "masked", "--run", "model", *MASKED)
    assert code == 0, printed
    assert "bottom prior without text, nats per code" in printed
    return road


def test_a_masked_prior_has_the_same_result_and_says_what_its_nats_are(masked: Path) -> None:
    result = json.loads((masked / "runs/masked/results/priors-phantom-valid.json").read_text())
    metrics = {metric["name"]: metric["value"] for metric in result["metrics"]}
    for level in ("top", "bottom"):
        assert 0 < metrics[f"{level} prior, nats per code"] < np.log(16) + 1
        assert 0 <= metrics[f"{level} prior, accuracy"] <= 1
    assert "in a random order" in result["protocol"]
    other = json.loads((masked / "runs/priors/results/priors-phantom-valid.json").read_text())
    assert "in a random order" not in other["protocol"]


def test_codes_of_a_masked_prior_are_those_of_the_pair_and_have_tokens(masked: Path) -> None:
    with (
        h5py.File(masked / "runs/masked/codes.h5") as tokens,
        h5py.File(masked / "runs/priors/codes.h5") as none,
    ):
        for split in ("train", "valid"):
            for name in none[split]:
                assert np.array_equal(tokens[f"{split}/{name}"][...], none[f"{split}/{name}"][...])
            assert "token" not in none[split]
            token_nVM = tokens[f"{split}/token"][...]
            assert token_nVM.shape[:2] == none[f"{split}/text"].shape[:2]
            length_nV = (token_nVM >= 0).sum(-1)
            assert (length_nV > 2).all()
            # the end alone is filled up
            assert ((token_nVM >= 0) == (np.arange(token_nVM.shape[2]) < length_nV[:, :, None])).all()


def test_a_masked_prior_stopped_and_resumed_equals_one_not_stopped(masked: Path) -> None:
    whole, half = masked / "runs/masked", masked / "runs/half-masked"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints/step-00000006")
    code, printed = call(masked, "fit-prior", PRIORS, "--name", "half-masked", *MASKED)
    assert code == 0, printed
    for name in ("model", "optimizer"):
        a, b = (load_file(run / f"checkpoints/step-00000006/{name}.safetensors") for run in (whole, half))
        assert a.keys() == b.keys()
        assert all(a[key].equal(b[key]) for key in a)


def test_two_ranks_fit_the_masked_prior_that_one_does(masked: Path) -> None:
    ask = ("fit-prior", PRIORS, "--run", "model", *MASKED, "-o", "prior.masked.dropout=0")
    code, printed = call(masked, *ask, "--name", "one-masked", "-o", "train.micro_batch=8")
    assert code == 0, printed
    process = start(masked, *ask, "--name", "two-masked", "-o", "train.micro_batch=4", "--num-processes", 2)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    logs = [read_log(masked / "runs" / name / "log.jsonl") for name in ("one-masked", "two-masked")]
    for one, two in zip(*logs, strict=True):
        assert one["step"] == two["step"]
        assert one["total"] == pytest.approx(two["total"], rel=1e-4)


def test_masked_images_do_not_depend_on_the_batch_nor_on_a_stop(masked: Path) -> None:
    ask = ("synthesize", "--run", "masked", "--prompts", "report", "--guidance", 2, "--n", 11)
    for name, more in (("whole", ()), ("parts", ("--n", 4)), ("parts", ("--batch", 3))):
        code, printed = call(masked, *ask, *more, "--out", masked / name)
        assert code == 0, printed
    pictures = [
        {p.name: p.read_bytes() for p in (masked / name).glob("0*.png")} for name in ("whole", "parts")
    ]
    assert len(pictures[0]) == 11
    assert pictures[0] == pictures[1]
    assert (masked / "whole/samples.jsonl").read_bytes() == (masked / "parts/samples.jsonl").read_bytes()
    settings = json.loads((masked / "whole/settings.json").read_text())
    assert (settings["top_rounds"], settings["bottom_rounds"]) == (2, 3)


def test_edit_keeps_what_lies_outside_of_the_box(masked: Path) -> None:
    film = masked / "film.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60), dtype=np.uint8)).save(film)
    ask = ("synthesize", "--run", "masked", "--edit", film, "--prompt", "Small left effusion.", "--n", 3)
    code, printed = call(masked, *ask, "--box", "0,0,29,44", "--out", masked / "edits")
    assert code == 0, printed
    edits = [np.asarray(Image.open(masked / f"edits/{number:06d}.png")) for number in range(3)]
    assert len({image.tobytes() for image in edits}) > 1
    size = edits[0].shape[0]
    sheet = np.asarray(Image.open(masked / "edits/contact.png"))
    assert sheet.shape[1] > 3 * size - 1
    assert sheet.shape[0] > 2 * size
    code, printed = call(masked, *ask, "--box", "0,0,60,91", "--out", masked / "outside")
    assert code == 1
    assert "inside of the 60 x 90 pixels" in printed
    code, printed = call(masked, *ask[:2], "priors", *ask[3:], "--out", masked / "by-code")
    assert code == 1
    assert "go code by code and cannot keep the rest of a film" in printed
    for wrong in (("--box", "1,2,3"), ("--figure", "test"), ("--prompts", "report")):
        code, printed = call(masked, *ask, *wrong, "--out", masked / "wrong")
        assert code == 2, printed
