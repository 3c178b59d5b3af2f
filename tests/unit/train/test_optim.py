"""Which parameters decay, the learning rate of every step, and the optimiser's state by name."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from medunifier_cli.checkpoint import store
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.prior.pair import PriorPair
from medunifier_cli.prior.shape import PriorShape
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_train import OptimConfig
from medunifier_cli.train.optim import (
    NO_DECAY,
    adamw,
    learning_rate,
    load_state_tensors,
    state_tensors,
)


@pytest.fixture(scope="module")
def full() -> nn.Module:
    """The paper's model, without memory for its weights."""
    with torch.device("meta"):
        return MedUnifier(load_recipe("full"), 30523, load=False)


def decayed(module: nn.Module) -> set[str]:
    """Names of the parameters that AdamW decays."""
    optimizer = adamw(module, OptimConfig(weight_decay=0.05))
    groups = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(groups.values()) == {0.0, 0.05}
    return {name for name, p in module.named_parameters() if groups.get(id(p))}


@pytest.mark.parametrize("suffix", NO_DECAY)
def test_every_name_without_decay_is_one_of_the_model(full: nn.Module, suffix: str) -> None:
    """A parameter that is renamed must not begin to decay unseen."""
    names = [name for name, _ in full.named_parameters() if name.endswith(suffix)]
    assert names
    assert not decayed(full) & set(names)


def test_matrices_and_kernels_decay_and_nothing_else(full: nn.Module) -> None:
    trained = {name: p for name, p in full.named_parameters() if p.requires_grad}
    without = trained.keys() - decayed(full)
    assert {name for name in without if trained[name].dim() > 1} == {
        "qformer.word.weight", "qformer.position.weight", "qformer.query_tokens",
        "generator.quantise_top.code_KC", "generator.quantise_bottom.code_KC",
    }  # fmt: skip
    assert {name for name, p in trained.items() if p.dim() < 2} <= without
    assert "match_head.weight" in decayed(full)
    assert not any(name.startswith("vit.") for name in decayed(full)), "frozen weights are left out"


def test_kernels_of_the_priors_decay() -> None:
    top = PriorShape(channels=32, blocks=1, layers=1, heads=2, top_layers=1, codes=16)
    with torch.device("meta"):
        pair = PriorPair(top, replace(top, top_codes=16, attention=False))
    matrices = {name for name, p in pair.named_parameters() if p.dim() >= 2}
    assert decayed(pair) == {name for name in matrices if not name.endswith(NO_DECAY)}


def test_warm_up_is_linear_and_then_comes_half_a_cosine() -> None:
    recipe = OptimConfig(peak_lr=1e-3, warmup_lr=1e-4, final_lr=1e-5, warmup=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[5] == pytest.approx((1e-4 + 1e-3) / 2)
    assert rates[10] == max(rates) == pytest.approx(1e-3)
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[99] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (1.0, 3), (0.05, 1)])
def test_a_short_schedule_has_a_rate_for_each_step(warmup: float, steps: int) -> None:
    recipe = OptimConfig(peak_lr=1e-3, warmup_lr=1e-4, warmup=warmup)
    assert all(1e-4 <= learning_rate(recipe, step, steps) <= 1e-3 for step in range(steps))


def test_state_round_trip_by_name() -> None:
    """Two steps, save, load into a new optimiser, third step: as three steps."""

    def step(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        module(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = adamw(one, OptimConfig(peak_lr=0.1))
    assert state_tensors(one, optimizer) == {}
    for number in range(2):
        step(one, optimizer, number)
    saved = {name: tensor.clone() for name, tensor in state_tensors(one, optimizer).items()}
    assert {"exp_avg.0.weight", "exp_avg_sq.1.bias", "step.0.bias"} <= saved.keys()

    other = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    other.load_state_dict(one.state_dict())
    again = adamw(other, OptimConfig(peak_lr=0.1))
    load_state_tensors(other, again, saved)
    step(one, optimizer, 2)
    step(other, again, 2)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_state_that_is_incomplete_or_of_another_module_is_refused() -> None:
    one = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = adamw(one, OptimConfig(peak_lr=0.1))
    one(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()
    saved = state_tensors(one, optimizer)
    without = {name: tensor for name, tensor in saved.items() if name != "exp_avg.0.weight"}
    with pytest.raises(KeyError, match=r"exp_avg\.0\.weight"):
        load_state_tensors(one, adamw(one, OptimConfig()), without)
    renamed = {name.replace(".0.weight", ".2.weight"): tensor for name, tensor in saved.items()}
    with pytest.raises(KeyError, match=r"2\.weight"):
        load_state_tensors(one, adamw(one, OptimConfig()), renamed)


def test_a_parameter_that_never_got_a_gradient_has_no_state_and_resumes_without() -> None:
    """It is reached in the third step alone: resumed after the second, that step is its first either way."""

    def step(module: nn.Sequential, optimizer: torch.optim.Optimizer, number: int) -> None:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        (module if number == 2 else module[0])(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    optimizer, again = adamw(one, OptimConfig(peak_lr=0.1)), adamw(other, OptimConfig(peak_lr=0.1))
    for number in range(2):
        step(one, optimizer, number)
    saved = state_tensors(one, optimizer)
    assert {name.split(".", 1)[1] for name in saved} == {"0.weight", "0.bias"}
    other.load_state_dict(one.state_dict())
    load_state_tensors(other, again, {name: tensor.clone() for name, tensor in saved.items()})
    for module, its in ((one, optimizer), (other, again)):
        step(module, its, 2)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_loaded_state_keeps_no_file_open(tmp_path: Path) -> None:
    """A deleted checkpoint would else keep its space on the disk, and its folder on NFS."""
    linear = nn.Linear(64, 64)
    optimizer = adamw(linear, OptimConfig())
    linear(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    store.save(tmp_path, store.Checkpoint(1, {"optimizer": state_tensors(linear, optimizer)}, {}), keep=1)
    checkpoint = store.newest(tmp_path)
    assert checkpoint is not None
    load_state_tensors(linear, optimizer, checkpoint.tensors["optimizer"])
    del checkpoint
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
