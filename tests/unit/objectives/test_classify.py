"""The loss of fine-tuning, its weights, and which parameters learn at which rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from medunifier_cli.errors import MuError
from medunifier_cli.model.classifier import Classifier, build_head
from medunifier_cli.model.head_contract import HeadPlugin
from medunifier_cli.objectives.classify import balanced, classification_loss
from medunifier_cli.plugin_index import load_head
from medunifier_cli.recipe.schema_finetune import FinetuneOptimConfig
from medunifier_cli.recipe.schema_train import OptimConfig
from medunifier_cli.train.optim import adamw, set_rate
from tests.tiny import draw_batch, tiny_model

LABELS = torch.tensor([0, 2, 2, 1, 2, 2])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def test_balanced_cross_entropy_is_pytorchs_with_scikit_learns_weights() -> None:
    counted = np.stack([6 - np.bincount(LABELS), np.bincount(LABELS)])
    weights = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    losses, monitors = classification_loss(LOGITS, LABELS, balanced(counted, one_class=True))
    expected = F.cross_entropy(LOGITS, LABELS, torch.tensor(weights, dtype=torch.float32))
    torch.testing.assert_close(losses["total"], expected)
    torch.testing.assert_close(
        classification_loss(LOGITS, LABELS)[0]["total"], F.cross_entropy(LOGITS, LABELS)
    )
    assert float(monitors["accuracy"]) == pytest.approx(float((LOGITS.argmax(1) == LABELS).float().mean()))


def test_unknown_labels_count_for_nothing() -> None:
    truth = torch.tensor([[1, 0, torch.nan], [torch.nan, 1, 0]])
    losses, _ = classification_loss(LOGITS[:2], truth)
    by_hand = [
        F.binary_cross_entropy_with_logits(LOGITS[i, c], truth[i, c])
        for i, c in ((0, 0), (0, 1), (1, 1), (1, 2))
    ]
    torch.testing.assert_close(losses["total"], torch.stack(by_hand).mean())


def test_balanced_labels_give_both_sides_the_same_weight() -> None:
    weight = balanced(np.array([[90, 20], [10, 80]]), one_class=False)
    torch.testing.assert_close(weight * torch.tensor([[90.0, 20], [10, 80]]), torch.full((2, 2), 50.0))


@pytest.mark.parametrize("head", ["linear", "mlp", "two-linear", "attention-pool"])
def test_every_weight_that_is_trained_gets_a_gradient_and_no_text_weight_is(head: str) -> None:
    model = tiny_model(dtype=torch.float32)
    made = build_head(load_head(head), 4, 32, 3, seed=0)
    classifier = Classifier(model, made, freeze=False)
    losses, _ = classification_loss(classifier(draw_batch(6).image_B1HW), LABELS)
    losses["total"].backward()
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    reached = {name for name, parameter in classifier.named_parameters() if parameter.grad is not None}
    assert trained == reached == set(classifier.weights())
    assert any(name.startswith("model.vit.") for name in trained)
    assert not any("ffn_text" in name or "generator" in name or "text_head" in name for name in trained)


def test_the_authors_head_is_two_linear_layers_and_ours_has_a_relu_between() -> None:
    """Written out: first every query's numbers end to end, [B, Q * D]; D numbers; C logits."""
    query_BQD = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    for name, between in (("two-linear", nn.Identity()), ("mlp", nn.ReLU())):
        made = build_head(load_head(name), 4, 6, 3, seed=0)
        w1, b1, w2, b2 = made.parameters()
        assert [tuple(w.shape) for w in (w1, b1, w2, b2)] == [(6, 24), (6,), (3, 6), (3,)]
        by_hand = between(query_BQD.reshape(5, 24) @ w1.T + b1) @ w2.T + b2
        torch.testing.assert_close(made(query_BQD), by_hand)


def test_frozen_model_trains_the_head_alone_and_stays_in_evaluation_mode() -> None:
    classifier = Classifier(tiny_model(), build_head(load_head("mlp"), 4, 32, 3, 0), freeze=True).train()
    assert {n.split(".")[0] for n, p in classifier.named_parameters() if p.requires_grad} == {"head"}
    assert not any(module.training for module in classifier.model.modules())
    assert classifier.head.training


def test_pretrained_and_new_layers_have_the_papers_rates_through_the_whole_schedule() -> None:
    recipe = FinetuneOptimConfig()
    module = nn.ModuleDict({"model": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    ratio = recipe.model_lr / recipe.head_lr
    optimizer = adamw(module, recipe.for_loop(), lambda name: 1.0 if name.startswith("head.") else ratio)
    set_rate(optimizer, recipe.for_loop().peak_lr)
    rates = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name, parameter in module.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert rates["head.weight"] == pytest.approx((3e-4, 0.05))
    assert rates["head.bias"] == pytest.approx((3e-4, 0.0))
    assert rates["model.weight"] == pytest.approx((3e-6, 0.05))
    assert rates["model.bias"] == pytest.approx((3e-6, 0.0))
    set_rate(optimizer, 1e-4)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([1e-6, 1e-4])


def test_one_rate_as_before_where_no_scale_is_given() -> None:
    optimizer = adamw(nn.Linear(2, 2), OptimConfig(peak_lr=1e-2))
    set_rate(optimizer, 1e-2)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}


class Wrong(HeadPlugin):
    name = "wrong"
    title = "gives one logit too many"

    def build(self, queries: int, width: int, classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(queries * width, classes + 1))


def test_head_of_another_shape_is_one_line() -> None:
    with pytest.raises(MuError, match=r"^head `wrong` cannot be used .*gives \(2, 4\), not \(2, 3\)$"):
        build_head(Wrong(), 4, 32, 3, 0)


def test_weights_of_a_pass_may_sum_to_less_than_one() -> None:
    """A small pass of the largest class alone."""
    weights = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 0.3]])
    expected = F.cross_entropy(LOGITS[1:2], LABELS[1:2], weights[1])
    torch.testing.assert_close(classification_loss(LOGITS[1:2], LABELS[1:2], weights)[0]["total"], expected)
    none = torch.full((1, 3), torch.nan)
    assert float(classification_loss(LOGITS[:1], none)[0]["total"]) == 0
