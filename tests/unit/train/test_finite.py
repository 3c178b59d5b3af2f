"""Steps that are not finite: skipped without a trace, counted, and never in a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier_cli.checkpoint import store
from medunifier_cli.distributed import draws
from medunifier_cli.errors import NotFiniteError, Stopped
from medunifier_cli.model.vqvae.quantizer import Quantiser
from medunifier_cli.recipe.schema import GeneratorConfig
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.run.log import without_times
from medunifier_cli.train.finite import OVERFLOWS, Counts, Skips, not_finite
from medunifier_cli.train.loop import fit, optimise
from medunifier_cli.train.optim import adamw
from medunifier_cli.train.stage import Values
from tests.tiny import tiny_recipe
from tests.unit.train.test_loop import OPTIM, LineStage, new_run

EVERY = LoopConfig(steps=8, global_batch=8, log_every=1, valid_every=0, checkpoint_every=1, keep=8, seed=5)


class Net(nn.Module):
    """Whatever a forward pass in training changes: batch statistics, a codebook, its running use."""

    def __init__(self, codebook: str = "loss") -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0.0))
        self.first, self.norm = nn.Linear(1, 4), nn.BatchNorm1d(4)
        recipe = GeneratorConfig(codebook=codebook, codebook_size=6, code_width=4, revive_dead_codes=True)  # type: ignore[arg-type]
        self.codes = Quantiser(recipe)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # infinite on purpose

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        hidden = self.norm(self.first(x[:, None]))
        codes = self.codes(hidden[:, :, None, None], draws.generator(0, draws.REVIVAL, 0))
        return self.slope * x + self.offset + codes.codebook_loss + codes.commitment_loss


class BadStage(LineStage):
    """Some steps are not finite: `loss` says in which and how; a batch of NaN also spoils running means."""

    steps = EVERY.steps

    def __init__(self, bad: dict[int, str], codebook: str = "loss", **options: Any) -> None:
        super().__init__(dropout=0.0, **options)
        torch.manual_seed(1)
        self.module, self.bad = Net(codebook), bad
        self.states: list[dict[str, Tensor]] = []

    def start(self) -> None:
        """Nothing."""

    @property
    def line(self) -> Any:
        return self.module

    def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
        if micro == 0:
            self.states.append({name: t.clone() for name, t in self.module.state_dict().items()})
        how = self.bad.get(step, "")
        losses, monitors = super().step(module, batch * torch.nan if how == "batch" else batch, step, micro)
        if how in ("nan", "inf", "-inf") and micro == 0:
            losses["total"] = losses["total"] * float(how)
        elif how == "loss alone":  # its gradient is that of a finite loss
            losses["total"] = losses["total"] + torch.inf
        elif how == "gradient alone":
            losses["total"] = losses["total"] + (self.line.slope * 0.0).sqrt()
        return losses, monitors


def log_lines(run: Any) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(text, parse_constant=refuse) for text in run.log.read_text().splitlines()]


def moments(run: Any, step: int) -> dict[str, Tensor]:
    return dict(store.load(run.checkpoints / f"step-{step:08d}").tensors["optimizer"])


@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "batch", "loss alone", "gradient alone"])
def test_a_skipped_step_leaves_everything_as_it_was(
    tmp_path: Path, accelerator: Accelerator, how: str, clip_norm: float
) -> None:
    run = new_run(tmp_path / "run")
    stage = BadStage({3: how}, micro_batches=2)
    fit(stage, run, accelerator, EVERY, replace(OPTIM, clip_norm=clip_norm))
    before, after = stage.states[3], stage.states[4]
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not torch.equal(stage.states[2]["norm.running_mean"], before["norm.running_mean"])
    assert not torch.equal(after["slope"], stage.states[5]["slope"]), "the next step is one again"
    steps = [moments(run, done)["step.slope"].item() for done in (3, 5, 8)]
    assert steps == [3, 4, 7], "the skipped step is not one of the optimiser's"
    assert store.steps(run.checkpoints) == [1, 2, 3, 5, 6, 7, 8], "put off to the next step that is finite"
    skipped = [line.get("skipped_steps") for line in log_lines(run) if line["event"] == "train"]
    assert skipped == [None, None, None, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("codebook", ["loss", "ema"])
def test_a_bad_first_batch_neither_starts_nor_spoils_the_codebook(
    tmp_path: Path, accelerator: Accelerator, codebook: str
) -> None:
    stage = BadStage({0: "batch", 1: "batch"}, codebook)
    fit(stage, new_run(tmp_path / "run"), accelerator, EVERY, OPTIM)
    assert not stage.states[2]["codes.started"]
    assert torch.equal(stage.states[2]["codes.code_KC"], stage.states[0]["codes.code_KC"])
    assert stage.states[3]["codes.started"]
    assert not torch.equal(stage.states[3]["codes.code_KC"], stage.states[0]["codes.code_KC"])
    assert not_finite({"model": stage.module.state_dict()}) == ["model: mask"]


@pytest.mark.parametrize("keep", [1, 8])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_row_of_skipped_steps_ends_the_run_with_the_checkpoint_before_it(
    tmp_path: Path, accelerator: Accelerator, log_every: int, keep: int
) -> None:
    run = new_run(tmp_path / "run")
    train = replace(EVERY, skip_limit=3, log_every=log_every, keep=keep)
    expected = (
        r"run: loss or gradients not finite in 3 steps in a row, up to step 6; step 3's checkpoint is kept; "
        r"lower the learning rate in the same command to resume$"
    )
    with pytest.raises(NotFiniteError, match=expected):
        fit(BadStage(dict.fromkeys(range(3, 8), "nan")), run, accelerator, train, OPTIM)
    assert store.steps(run.checkpoints) == [1, 2, 3][-keep:]
    for step in store.steps(run.checkpoints):
        assert not_finite(store.load(run.checkpoints / f"step-{step:08d}").tensors) == ["model: mask"]
    assert fit(BadStage({}), run, accelerator, train, replace(OPTIM, peak_lr=0.01)) == 5, "and it goes on"


def test_beyond_the_limit_nothing_changes_until_the_loop_looks(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    """The CPU looks at step 8 alone; that steps 5 to 8 were finite again must not hide the row."""
    stage, run = BadStage({2: "nan", 3: "inf"}), new_run(tmp_path / "run")
    train = replace(EVERY, skip_limit=2, log_every=100, checkpoint_every=100)
    with pytest.raises(NotFiniteError, match=r"6 steps in a row, up to step 8; no checkpoint was written"):
        fit(stage, run, accelerator, train, OPTIM)
    assert store.steps(run.checkpoints) == []
    assert torch.equal(stage.states[2]["slope"], stage.module.state_dict()["slope"])


def test_single_bad_steps_never_end_a_run(tmp_path: Path, accelerator: Accelerator) -> None:
    run = new_run(tmp_path / "run")
    fit(BadStage(dict.fromkeys((1, 3, 5), "nan")), run, accelerator, replace(EVERY, skip_limit=2), OPTIM)
    assert log_lines(run)[-2]["skipped_steps"] == 3


@pytest.mark.parametrize("signal_at", [2, 3, 4, 5])
def test_a_run_that_is_stopped_in_a_row_of_skipped_steps_ends_as_the_undisturbed_one(
    tmp_path: Path, accelerator: Accelerator, signal_at: int
) -> None:
    whole, parts = new_run(tmp_path / "whole"), new_run(tmp_path / "parts")
    bad = dict.fromkeys((3, 4), "batch")
    fit(BadStage(bad), whole, accelerator, EVERY, OPTIM)
    with pytest.raises(Stopped):
        fit(BadStage(bad, signal_at=signal_at), parts, accelerator, EVERY, OPTIM)
    fit(BadStage(bad), parts, accelerator, EVERY, OPTIM)
    ends = [store.load(run.checkpoints / "step-00000008") for run in (whole, parts)]
    assert ends[0].facts == ends[1].facts
    assert ends[0].facts["skips"]["skipped"] == 2
    for kind in ("model", "optimizer", "rng"):
        one, other = (end.tensors[kind] for end in ends)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    logs = [[without_times(line) for line in log_lines(run)] for run in (whole, parts)]
    assert logs[0] == logs[1]


def test_weights_that_a_finite_step_makes_infinite_are_not_saved(
    tmp_path: Path, accelerator: Accelerator
) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(Stopped):
        fit(BadStage({}, signal_at=3), run, accelerator, EVERY, OPTIM)
    expected = r"model: \S+ is not finite after step 5; step 4's checkpoint is kept"
    with pytest.raises(NotFiniteError, match=expected):  # a step of a finite gradient at an absurd rate
        fit(BadStage({}), run, accelerator, EVERY, replace(OPTIM, peak_lr=1e39, warmup_lr=1e39))
    assert store.steps(run.checkpoints) == [1, 2, 3, 4]


def test_a_checkpoint_with_nan_of_an_older_version_is_passed_over(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(Stopped):
        fit(BadStage({}, signal_at=3), run, accelerator, EVERY, OPTIM)
    good = store.load(run.checkpoints / "step-00000004")
    model = {**good.tensors["model"], "slope": torch.tensor(torch.nan)}
    store.save(run.checkpoints, store.Checkpoint(5, {**good.tensors, "model": model}, good.facts), keep=8)
    assert fit(BadStage({}), run, accelerator, EVERY, OPTIM) == 4
    assert "step-00000005: model: slope is not finite; trying the previous" in capsys.readouterr().err


@pytest.mark.parametrize("keep", [1, 2])
def test_a_lower_rate_goes_on_before_weights_from_which_no_step_is_finite(
    tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str], keep: int
) -> None:
    class Absurd(BadStage):
        """With a slope as large as step 3 of a high rate makes it, no loss is finite."""

        def step(self, module: nn.Module, batch: Tensor, step: int, micro: int) -> tuple[Values, Values]:
            losses, monitors = super().step(module, batch, step, micro)
            return {**losses, "total": losses["total"] + (1e38 * (self.line.slope > 2.25)) * 1e38}, monitors

    run = new_run(tmp_path / "run")
    train = replace(EVERY, skip_limit=2, keep=keep)
    run.begin(tiny_recipe(), {}, ["mu"])
    for _ in range(2):
        with pytest.raises(NotFiniteError, match="step 3's checkpoint is kept"):
            fit(Absurd({}), run, accelerator, train, OPTIM)
    run.begin(tiny_recipe("optim.peak_lr=1e-5"), {}, ["mu"])
    capsys.readouterr()
    lower = replace(OPTIM, peak_lr=1e-3, warmup_lr=1e-3)
    assert fit(Absurd({}), run, accelerator, train, lower) == (6 if keep == 2 else 8)
    assert "step-00000003: no step after it was finite; trying the previous" in capsys.readouterr().err


class Reads(TorchDispatchMode):
    """Counts the times that the CPU asks for a value of a tensor, for which it would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip_norm", [1.0, 0.0])
def test_no_step_makes_the_cpu_wait(accelerator: Accelerator, clip_norm: float) -> None:
    stage, batch = LineStage(dropout=0.0), [torch.randn(8)]
    module, optimizer = accelerator.prepare(stage.module, adamw(stage.module, OPTIM))
    skips = Skips(stage.module, torch.device("cpu"), 3, False, Counts())
    with Reads() as reads:
        optimise(stage, module, accelerator, optimizer, batch, 0, clip_norm, skips)
    assert reads.count == 0
    with Reads() as reads:
        bool(torch.ones(()) > 0)
    assert reads.count == 1, "the counter counts"


def test_overflows_of_scaled_gradients_are_counted_apart() -> None:
    skips = Skips(nn.Linear(1, 1), torch.device("cpu"), limit=3, scaled=True, counts=Counts())
    infinite, finite = torch.tensor(torch.inf), torch.tensor(1.0)

    def step(loss: Tensor, norm: Tensor) -> Counts:
        skips.begin()
        skips.factor(loss)
        skips.decide(norm)
        skips.end()
        return skips.read()

    assert step(finite, infinite) == Counts(0, 0, 1, 1)
    assert step(finite, infinite) == Counts(0, 0, 2, 2)
    assert step(finite, finite) == Counts(0, 0, 2, 0)
    assert step(infinite, infinite) == Counts(1, 1, 2, 0), "no scale mends a loss"
    assert step(finite, finite) == Counts(1, 0, 2, 0)
    for _ in range(OVERFLOWS):
        counts = step(finite, infinite)
    assert counts == Counts(1, 0, 2 + OVERFLOWS, OVERFLOWS)
    assert step(finite, infinite) == Counts(2, 1, 2 + OVERFLOWS, OVERFLOWS), "nor does it mend these"
    assert counts.shown() == {"skipped_steps": 1.0, "overflows": 2.0 + OVERFLOWS}
    assert Counts().shown() == {}


def test_not_finite_names_what_is_not() -> None:
    tensors = {
        "model": {
            "whole": torch.arange(3), "empty": torch.zeros(0), "half": torch.tensor([1.0, 65504.0]).half(),
            "nan": torch.tensor([1.0, torch.nan]), "wide": torch.tensor([1e300], dtype=torch.float64),
        },
        "optimizer": {"exp_avg": torch.tensor([-torch.inf]), "big": torch.tensor([3e38, -3e38])},
    }  # fmt: skip
    assert not_finite(tensors) == ["model: nan", "optimizer: exp_avg"]
