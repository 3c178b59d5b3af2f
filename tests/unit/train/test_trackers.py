"""Experiment trackers of a run: what they get over all its starts, and that none of them can end it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, tracking
from PIL import Image
from torch import Tensor, nn

from medunifier_cli.data.loader import SplitSource
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import MuError
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_train import LoopConfig, PretrainTrainConfig
from medunifier_cli.run.log import Log
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.loop import fit
from medunifier_cli.train.trackers import opening
from medunifier_cli.train.trackers.opening import IDENTITY, check_trackers
from medunifier_cli.train.trackers.tracking import Tracking
from tests.hand_made import WORDS, HandMade, sample, write_split
from tests.tiny import tiny_recipe
from tests.unit.train.test_loop import OPTIM, SETTINGS, LineStage, lines

Stories = list[tuple[str, Any]]
TOKENIZER = TextTokenizer.train([*WORDS, "case 1.", "0 2 3 4 5 6 7 8 9"], 200)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "mine")
    made.begin(load_recipe("demo"), {}, ["mu", "pretrain"])
    return made


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Stories:
    """What the tracker `diary`, which is registered with Accelerate, is given."""
    told: Stories = []

    class Diary(tracking.GeneralTracker):
        name = "diary"
        requires_logging_directory = False

        def __init__(self, project: str) -> None:
            super().__init__()
            told.append(("project", project))

        @property
        def tracker(self) -> Stories:
            return told

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            told.append(("recipe", values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            told.append((f"log {step}", values))

        def log_images(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            told.append((f"images {step}", values))

        def finish(self) -> None:
            told.append(("finish", None))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "diary", Diary)
    return told


class KilledStage(LineStage):
    """Ends without a checkpoint in the step after the first four, as a kill would."""

    def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> Any:
        if step == 4:
            raise RuntimeError("killed")
        return super().step(module, batch, step, micro)


def train_twice(run: Run, accelerator: Accelerator, settings: LoopConfig) -> None:
    """Six steps, of which a kill after the fourth takes back one: the checkpoint is that of the third."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(KilledStage(), run, accelerator, settings, OPTIM)
    assert fit(LineStage(), run, accelerator, settings, OPTIM) == 3


def events_of(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder)).Reload()


def test_tensorboard_shows_each_step_of_a_resumed_run_once(run: Run, accelerator: Accelerator) -> None:
    train_twice(run, accelerator, replace(SETTINGS, tensorboard=True))
    events = events_of(run.folder / "tensorboard")
    for event in ("train", "valid"):
        logged = [(line["step"], line["total"]) for line in lines(run) if line["event"] == event]
        shown = [(scalar.step, scalar.value) for scalar in events.Scalars(f"{event}/total")]
        assert shown == [(step, pytest.approx(value)) for step, value in logged]
    assert [scalar.step for scalar in events.Scalars("train/total")] == [1, 2, 4, 6]
    # all in one TensorBoard run, which the recipe describes
    assert not [path for path in (run.folder / "tensorboard").iterdir() if path.is_dir()]
    (start,) = [
        content for tag, content in events.PluginTagToContent("hparams").items() if "session_start" in tag
    ]
    assert b"model.qformer.width" in start
    assert b"vit_tiny_patch16_224" in start


def test_any_tracker_of_accelerate_gets_each_step_once(
    run: Run, accelerator: Accelerator, story: Stories
) -> None:
    train_twice(run, accelerator, replace(SETTINGS, trackers=("diary",), project="chest"))
    assert [what for what, _ in story if not what.startswith("log")] == [
        "project", "recipe", "project", "recipe", "finish",
    ]  # fmt: skip
    assert story[0] == ("project", "chest")
    recipe = dict(story)["recipe"]
    assert recipe["model.qformer.width"] == 128
    assert recipe["data.sections"] == "impression"
    logged = [(what, next(iter(values)).split("/")[0]) for what, values in story if what.startswith("log")]
    assert logged == [
        ("log 1", "train"), ("log 2", "train"), ("log 3", "valid"), ("log 4", "train"), ("log 6", "train"),
        ("log 6", "valid"),
    ]  # fmt: skip
    numbers = {line["step"]: line["total"] for line in lines(run) if line["event"] == "train"}
    assert dict(sent(story, "train/total")) == numbers


def sent(story: Stories, name: str) -> list[tuple[int, float]]:
    return [(int(what.split()[1]), values[name]) for what, values in story if name in (values or {})]


def test_other_ranks_open_no_tracker(run: Run, story: Stories) -> None:
    with Tracking(run, replace(SETTINGS, trackers=("diary",)), None, 0) as tracking_:
        tracking_.log("train", 1, {"train/total": 1.0})
    assert story == []
    assert not (run.folder / IDENTITY).exists()


@pytest.mark.parametrize("method", ["__init__", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_costs_one_warning_and_no_run(
    run: Run, accelerator: Accelerator, story: Stories, monkeypatch: pytest.MonkeyPatch, method: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    class Offline(tracking.LOGGER_TYPE_TO_CLASS["diary"]):  # type: ignore[misc]
        name = "offline"

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no way to\nthe server")

    monkeypatch.setattr(Offline, method, fail)
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "offline", Offline)
    settings = replace(SETTINGS, trackers=("offline", "diary"))
    assert fit(LineStage(), run, accelerator, settings, OPTIM) == 6
    warnings = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert warnings == [
        "mu: warning: the tracker offline has failed and gets no more until the next start "
        "(ConnectionError: no way to the server)"
    ]
    assert [step for step, _ in sent(story, "train/total")][-1] == 6, "the other one goes on"


def test_one_that_is_not_installed_is_named_only_if_asked_for(
    run: Run, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(opening, "get_available_trackers", list)
    assert fit(LineStage(), run, accelerator, replace(SETTINGS, tensorboard=True), OPTIM) == 6
    assert "tensorboard" not in capsys.readouterr().err
    assert not (run.folder / "tensorboard").exists()
    again = Run(run.folder.with_name("again"))
    again.begin(load_recipe("demo"), {}, ["mu", "pretrain"])
    settings = replace(SETTINGS, tensorboard=True, trackers=("tensorboard", "aim"))
    assert fit(LineStage(), again, accelerator, settings, OPTIM) == 6
    said = [line for line in capsys.readouterr().err.splitlines() if "installed" in line]
    assert said == [
        "mu: warning: train.trackers: tensorboard is not installed, so it gets nothing; "
        "pip install 'medunifier[tensorboard]'",
        "mu: warning: train.trackers: aim is not installed, so it gets nothing; pip install aim",
    ]


def test_a_name_that_accelerate_does_not_know_is_refused() -> None:
    with pytest.raises(MuError, match=r"train\.trackers: 'tensorbord' is no tracker of Accelerate: .*wandb"):
        check_trackers(replace(SETTINGS, trackers=("tensorbord",)))


def test_the_identity_of_a_run_stays_over_its_starts(run: Run) -> None:
    first = opening._identity(run)
    assert first == opening._identity(run) == json.loads((run.folder / IDENTITY).read_text())
    wandb = opening._arguments("wandb", run, first, None)
    assert (wandb["id"], wandb["resume"], wandb["name"]) == (first["id"], "allow", "mine")
    other = Run(run.folder.with_name("other"))
    other.folder.mkdir()
    assert opening._identity(other) != first


def pretrain(folder: Path, *settings: str) -> Run:
    """Two steps of a real model with a validation, on shards written by hand."""
    recipe = tiny_recipe(
        "data.workers=0", "train.steps=2", "train.valid_every=2", "train.precision=no", "train.valid_pairs=0",
        "train.log_every=1", "objectives.itm=0", *settings,
    )  # fmt: skip
    write_split(folder / "shards", "train", 8, per_shard=8)
    source = SplitSource(
        Shards.open(folder / "shards", "train"), TOKENIZER, recipe.data, recipe.text, HandMade()
    )
    run = Run(folder / "run")
    run.begin(recipe, {}, ["mu", "pretrain"])
    stage = Pretraining(recipe, run, source, source, TOKENIZER, torch.device("cpu"))
    fit(stage, run, accelerator_of(recipe.train, run.folder), recipe.train, recipe.optim)
    return run


def test_pictures_are_logged_and_reports_where_the_recipe_asks_for_them(tmp_path: Path) -> None:
    run = pretrain(tmp_path / "asked", "train.tracker_reports=3", f"data.shards={tmp_path / 'asked/shards'}")
    events = events_of(run.folder / "tensorboard")
    (picture,) = events.Images("valid/reconstructions")
    (path,) = run.samples.glob("reconstructions-step-*.png")
    with Image.open(path) as written:
        assert (picture.width, picture.height, picture.step) == (*written.size, 2)
    (table,) = events.Tensors("valid/reports/text_summary")
    rows = table.tensor_proto.string_val[0].decode().splitlines()
    assert rows[0] == "| key | reference | hypothesis |"
    references = {key: " ".join(meta["sections"].values()) for key, _, meta in map(sample, range(3))}
    for row, (key, reference) in zip(rows[2:], references.items(), strict=True):
        assert row.startswith(f"| {key} | {reference} | ")
    log = run.log.read_text()
    assert not any(reference in log for reference in references.values())

    run = pretrain(tmp_path / "not")
    events = events_of(run.folder / "tensorboard")
    assert events.Tags()["images"] == ["valid/reconstructions"]
    assert events.Tags()["tensors"] == []
    assert [path.suffix for path in run.samples.iterdir()] == [".png"]


def asked(*names: str, reports: int = 1) -> PretrainTrainConfig:
    return PretrainTrainConfig(trackers=names, tracker_reports=reports, tensorboard=False)


def write_report(run: Run) -> None:
    """As the validation of step 2 writes it."""
    row = {"key": "a", "reference": "a secret effusion", "hypothesis": "clear"}
    run.samples.mkdir()
    (run.samples / "reports-step-00000002.jsonl").write_text(json.dumps(row))


def test_reports_that_an_earlier_start_wrote_are_not_sent_by_one_that_asks_for_none(
    run: Run, story: Stories
) -> None:
    write_report(run)
    for reports in (0, 1):
        with Tracking(run, asked("diary", reports=reports), Log(run.log, 0), 0) as tracking_:
            tracking_.log_samples(2)
        assert ("secret" in str(story)) == bool(reports)


@pytest.mark.parametrize("name", ["aim", "dvclive"])
def test_a_tracker_that_takes_no_texts_is_given_none(
    run: Run, story: Stories, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_report(run)
    monkeypatch.setattr(opening, "_installed", lambda _: True)
    kind = type(name, (tracking.LOGGER_TYPE_TO_CLASS["diary"],), {"name": name})
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, kind)
    with Tracking(run, asked(name), Log(run.log, 0), 0) as tracking_:
        tracking_.log_samples(2)
        tracking_.log("train", 3, {"total": 1.0})
    assert [what for what, _ in story] == ["project", "recipe", "log 3", "finish"]


@pytest.mark.parametrize(("name", "single"), [("aim", True), ("clearml", True), ("swanlab", False)])
def test_a_picture_is_given_as_the_tracker_of_that_name_takes_it(
    run: Run, story: Stories, monkeypatch: pytest.MonkeyPatch, name: str, single: bool
) -> None:
    run.samples.mkdir()
    Image.new("L", (6, 4), 7).save(run.samples / "reconstructions-step-00000002.png")
    monkeypatch.setattr(opening, "_installed", lambda _: True)
    kind = type(name, (tracking.LOGGER_TYPE_TO_CLASS["diary"],), {"name": name})
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, kind)
    with Tracking(run, asked(name), Log(run.log, 0), 0) as tracking_:
        tracking_.log_samples(2)
    given = dict(story)["images 2"]["valid/reconstructions"]
    assert isinstance(given, list) != single
    assert (given if single else given[0]).shape == (4, 6)


def test_a_validation_that_is_made_up_for_again_is_in_tensorboard_once(run: Run) -> None:
    """A start made up for the validation of step 2 and was killed before it had saved that."""
    pytest.importorskip("tensorboard")
    settings = replace(SETTINGS, tensorboard=True)
    for start in range(2):
        log = Log(run.log, 2 * start, validated=False)
        with Tracking(run, settings, log, 2 * start) as tracking_:
            for event, step in [("valid", 2)] if start else [("train", 2), ("valid", 2), ("train", 3)]:
                log.write(event, step, {"total": 1.0})
                tracking_.log(event, step, {f"{event}/total": 1.0})
    events = events_of(run.folder / "tensorboard")
    assert [scalar.step for scalar in events.Scalars("valid/total")] == [2]
    assert [scalar.step for scalar in events.Scalars("train/total")] == [2]


def test_a_tracker_that_fails_on_reports_repeats_none(
    run: Run, story: Stories, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any, values: Any, **__: Any) -> None:
        raise ValueError(f"cannot store {values}")

    monkeypatch.setattr(tracking.LOGGER_TYPE_TO_CLASS["diary"], "log", fail)
    write_report(run)
    with Tracking(run, asked("diary"), Log(run.log, 0), 0) as tracking_:
        tracking_.log_samples(2)
    said = capsys.readouterr().err
    assert "the tracker diary has failed" in said
    assert "(ValueError)" in said
    assert "secret" not in said


class Stub:
    """A tracker that keeps what it gets; MLflow's refuses names as MLflow 3 does."""

    def __init__(self, name: str) -> None:
        self.name, self.got = name, dict[str, float]()

    def log(self, values: dict[str, float], step: int) -> None:
        if self.name == "mlflow":
            # what its error says it takes: letters, digits, _, -, periods, spaces, colons and slashes
            wrong = [name for name in values if re.search(r"[^\w\-. :/]", name)]
            if wrong:
                raise ValueError(wrong)
        self.got |= values


def test_numbers_have_names_that_their_tracker_takes(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A real MLflow refused `recall@1`, and with it all numbers of the validation."""
    tracking = Tracking(run, SETTINGS, None, 0)
    stubs = [Stub("mlflow"), Stub("wandb")]
    tracking.trackers = list(stubs)  # type: ignore[assignment]
    tracking.log("valid", 4, {"valid/image_to_text_recall@10": 0.5, "valid/itc": 1.0})
    assert stubs[0].got == {"valid/image_to_text_recall_at_10": 0.5, "valid/itc": 1.0}
    assert stubs[1].got == {"valid/image_to_text_recall@10": 0.5, "valid/itc": 1.0}
    assert "has failed" not in capsys.readouterr().err
