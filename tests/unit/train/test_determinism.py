"""`--deterministic`: PyTorch's switches on a GPU, nothing on a CPU; no such kernel is one line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from medunifier_cli.commands.finetune import finetune
from medunifier_cli.commands.fit_prior import fit_prior
from medunifier_cli.commands.pretrain import pretrain
from medunifier_cli.errors import MuError, explain
from medunifier_cli.prior.contract import CodeBatch
from medunifier_cli.prior.pair import PriorPair
from medunifier_cli.prior.shape import PriorShape
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.run.record import Run
from medunifier_cli.stages.start import StartOptions
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.determinism import WORKSPACE, use_deterministic_kernels


@pytest.fixture(autouse=True)
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's switches as they were."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def test_on_a_gpu_every_switch_is_set_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    use_deterministic_kernels(cpu=False)
    assert os.environ[WORKSPACE] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark


def test_a_workspace_that_somebody_chose_is_kept_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    use_deterministic_kernels(cpu=False)
    assert os.environ[WORKSPACE] == ":16:8"
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(MuError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0'.*unset it, or set it to :4096:8"):
        use_deterministic_kernels(cpu=False)


def test_on_a_cpu_nothing_is_switched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a run's numbers are those without the option."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator_of(LoopConfig(precision="no", tensorboard=False, deterministic=True), tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not torch.are_deterministic_algorithms_enabled()
    assert WORKSPACE not in os.environ


def test_the_recipes_key_reaches_the_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "medunifier_cli.train.accelerator.use_deterministic_kernels", lambda cpu: asked.append(cpu)
    )
    for deterministic in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = LoopConfig(precision="no", tensorboard=False, deterministic=deterministic)
        accelerator_of(settings, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert asked == [not torch.cuda.is_available()]


def test_an_operation_without_such_a_kernel_is_one_line_that_names_it() -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))  # has none, on a CPU either
    lines, code = explain(raised.value)
    assert code == 1
    assert lines == [
        "PyTorch has no deterministic kernel for put_ on this device; leave out --deterministic "
        "(train.deterministic), and give the run another name with --name"
    ]


@pytest.mark.parametrize("verb", [pretrain, finetune, fit_prior])
def test_every_training_verb_has_the_option(verb: object) -> None:
    assert "deterministic" in [parameter.name for parameter in verb.params]  # type: ignore[attr-defined]


def test_the_option_is_the_recipes_key_and_recorded(tmp_path: Path) -> None:
    asked = StartOptions(("train.seed=3",), "", None, fresh=False, deterministic=True)
    recipe = load_recipe("demo", asked.overrides)
    assert recipe.train.deterministic
    assert recipe.train.seed == 3
    run = Run(tmp_path / "run")
    run.begin(recipe, {}, ["mu", "pretrain", "demo", "--deterministic"])
    assert json.loads(run.provenance.read_text())["starts"][0]["deterministic"] is True
    with pytest.raises(MuError, match=r"train\.deterministic was True, now False"):
        run.begin(load_recipe("demo", ("train.seed=3",)), {}, ["mu", "pretrain", "demo"])


def test_the_loss_of_the_priors_is_the_same_in_the_form_that_has_such_a_kernel() -> None:
    """Over maps the cross-entropy has none on a GPU."""
    torch.manual_seed(0)
    top = PriorShape(channels=32, blocks=1, layers=1, heads=2, top_layers=1, codes=5)
    pair = PriorPair(top, replace(top, top_codes=5, attention=False)).eval()
    batch = CodeBatch(torch.randint(5, (3, 2, 2)), torch.randint(5, (3, 4, 4)), None, None)
    numbers = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        losses, _ = pair(batch)
        numbers.append((losses["total"], pair.sums(batch, torch.tensor([True, False, True]))))
    torch.testing.assert_close(numbers[0], numbers[1])
