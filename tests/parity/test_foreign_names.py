"""Weights under names of LAVIS, transformers and the published MedUnifier compute what they do there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Blip2VisionConfig, Blip2VisionModel

from medunifier_cli.checkpoint.convert import load_start
from medunifier_cli.checkpoint.foreign.loaded import UNKNOWN
from medunifier_cli.errors import MuError
from medunifier_cli.model.foreign.vision import timm_tensors
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.recipe.schema import VitConfig
from tests.parity.test_qformer import blip2
from tests.tiny import scatter, tiny_model

EVA = "eva_giant_patch14_clip_224"
SIZES = {"patch_size": 8, "width": 48, "heads": 4}


def encoder(weights: Path | str, depth: int = 2, drop: bool = False) -> ImageEncoder:
    return ImageEncoder(
        VitConfig(name=EVA, weights=str(weights), depth=depth, drop_last_block=drop, **SIZES), 32
    )


@pytest.fixture(scope="module")
def vision() -> Blip2VisionModel:
    """BLIP-2's image encoder in transformers; EVA's feed-forward networks are 4.3637 times as wide."""
    config = Blip2VisionConfig(
        hidden_size=48, intermediate_size=int(48 * 4.3637), num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8, qkv_bias=True,
    )  # fmt: skip
    model = Blip2VisionModel(config).eval()
    scatter(model)
    for layer in model.encoder.layers:  # as BLIP-2 has it, and EVA: attention would cancel a bias of keys
        layer.self_attn.qkv.bias.data[48:96] = 0
    return model


def features(vision: Blip2VisionModel, image: Tensor) -> Tensor:
    """In front of the norm that BLIP-2 trains."""
    seen: list[Tensor] = []
    hook = vision.post_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        vision(image)
    hook.remove()
    return seen[0]


def as_lavis(encoder: ImageEncoder, before: str = "") -> dict[str, Tensor]:
    """timm's names are EVA's; LAVIS puts its own before them, and has no last norm."""
    kept = ((name, tensor) for name, tensor in encoder.vit.state_dict().items() if "norm." not in name[:5])
    return {f"{before}visual_encoder.{name}": tensor.clone() for name, tensor in kept}


def test_transformers_names_of_the_image_encoder(vision: Blip2VisionModel, tmp_path: Path) -> None:
    state = {f"vision_model.{name}": tensor.clone() for name, tensor in vision.state_dict().items()}
    save_file({**state, "qformer.layernorm.weight": torch.ones(3)}, tmp_path / "blip2.safetensors")
    ours = encoder(tmp_path / "blip2.safetensors")
    image = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(ours(image), features(vision, image), atol=2e-5, rtol=1e-4)
    # BLIP-2 is distributed without the last block, which is dropped here anyway
    torch.testing.assert_close(
        encoder(tmp_path / "blip2.safetensors", depth=3, drop=True)(image), ours(image)
    )
    with pytest.raises(
        MuError, match=r"blip2\.safetensors lacks 1\d tensors of eva.*such as blocks\.2\."
    ) as error:
        encoder(tmp_path / "blip2.safetensors", depth=3)
    assert "\n" not in str(error.value)
    save_file({**state, "vision_model.of_nobody": torch.ones(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(MuError, match=r"odd\.safetensors has vision_model\.of_nobody"):
        encoder(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("before", ["", "module."])
@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_lavis_names_of_the_image_encoder(tmp_path: Path, before: str, file: str) -> None:
    expected = encoder("random")
    scatter(expected.vit)
    state = {**as_lavis(expected, before), f"{before}temp": torch.tensor(0.05)}
    if file.endswith("pth"):
        torch.save({"model": state, "epoch": 3}, tmp_path / file)
    else:
        save_file(state, tmp_path / file)
    ours = encoder(tmp_path / file)
    assert {n: t.tolist() for n, t in ours.vit.state_dict().items()} == {
        n: t.tolist() for n, t in expected.vit.state_dict().items()
    }


@pytest.mark.parametrize("frozen", [True, False])
def test_a_file_of_something_else_leaves_no_weight_random(tmp_path: Path, frozen: bool) -> None:
    """timm loads what has the right names, draws the rest, and mentions it in a log."""
    state = encoder("random").vit.state_dict()
    save_file({f"other.{name}": t.clone() for name, t in state.items()}, tmp_path / "w.safetensors")
    recipe = VitConfig(
        name=EVA,
        weights=str(tmp_path / "w.safetensors"),
        depth=2,
        frozen=frozen,
        drop_last_block=False,
        **SIZES,
    )
    with pytest.raises(MuError, match=r"w\.safetensors lacks \d+ tensors of eva_giant"):
        ImageEncoder(recipe, 32)


def test_names_that_timm_knows_are_left_to_timm(tmp_path: Path) -> None:
    """Its own and EVA's, and those of a whole EVA-CLIP, whose text tower is not missed."""
    state = encoder("random").vit.state_dict()
    for before in ("", "visual."):
        named = {before + name: tensor.clone() for name, tensor in state.items()}
        save_file({**named, "text.positional_embedding": torch.ones(2)}, tmp_path / "w.safetensors")
        assert timm_tensors(tmp_path / "w.safetensors") is None
        ours = encoder(tmp_path / "w.safetensors").vit.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.items())
    (tmp_path / "w.pth").write_bytes(b"damaged")
    assert timm_tensors(tmp_path / "w.pth") is None


AUTHORS = (
    "model.generator.nonlinear=linear-relu-linear", "model.generator.upsample=nearest",
    "model.generator.residual=bottleneck", "model.generator.residual_layers=3",
    "model.generator.code_width=32", "model.generator.residual_width=16",
)  # fmt: skip


def published() -> dict[str, Tensor]:
    """A checkpoint as the authors' code would write it: 4 queries in a 2x2 map, 17 tokens of width 48."""
    draws = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    state = {}
    for name, tensor in blip2(2).state_dict().items():  # BLIP-2's Q-Former, as LAVIS spells it
        name = name.replace("vision_model.post_layernorm", "ln_vision")
        name = name.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")
        name = name.replace("qformer.encoder", "Qformer.bert.encoder").replace(
            "attention.attention.", "attention.self."
        )
        name = name.replace("vision_projection", "vision_proj").replace("text_projection", "text_proj")
        name = f"Qformer.bert.{name}" if name.startswith("embeddings.") else name
        state[name.replace("vision_model.", "visual_encoder.")] = tensor
    state["temp"] = torch.tensor(0.03)
    for bridge, width, hidden in (("top", 32, 64), ("bottom", 48 + 32, 32)):
        mlp = f"vqvae.{bridge}_bridge.mlp"
        state |= {f"{mlp}.0.weight": random(hidden, width), f"{mlp}.0.bias": random(hidden)}
        state |= {f"{mlp}.2.weight": random(32, hidden), f"{mlp}.2.bias": random(32)}
        layer = {
            "0.weight": random(16, 32, 1, 1),
            "3.weight": random(16, 16, 3, 3),
            "6.weight": random(32, 16, 1, 1),
        }
        for norm, channels in (("1", 16), ("4", 16), ("7", 32)):
            layer |= {f"{norm}.weight": random(channels), f"{norm}.bias": random(channels)}
            layer |= {f"{norm}.running_mean": random(channels), f"{norm}.running_var": random(channels).exp()}
            layer[f"{norm}.num_batches_tracked"] = torch.tensor(9)
        stack = f"vqvae.{bridge}_bridge.resdiual_stack.residual_stack"
        state |= {f"{stack}.{n}.residual_block.{name}": t for n in range(3) for name, t in layer.items()}
    state["vqvae.quantizer_top.codebook.weight"] = random(16, 32)
    state["vqvae.quantizer_bottom.codebook.weight"] = random(16, 64)
    state["vqvae.decoder_top.decoder.0.0.weight"] = random(32, 32, 4, 4)
    state["of_nobody.weight"] = random(2)
    return state


def start(*overrides: str) -> MedUnifier:
    every = "model.qformer.cross_attention_every=2"
    return tiny_model(every, *AUTHORS, *overrides, seed=4, dtype=torch.float32).eval()


def test_the_published_medunifier(tmp_path: Path) -> None:
    model = start()
    state = published()
    torch.save({"model": state}, tmp_path / "medunifier.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = load_start(model, str(tmp_path / "medunifier.pth"))
    # its adapter of the queries, written out with its own names
    top = "vqvae.top_bridge"
    query = torch.randn(2, 4, 32)
    x = F.linear(query, state[f"{top}.mlp.0.weight"], state[f"{top}.mlp.0.bias"]).relu()
    x = F.linear(x, state[f"{top}.mlp.2.weight"], state[f"{top}.mlp.2.bias"])
    x = x.transpose(1, 2).reshape(2, 32, 2, 2) + model.generator.adapt_top.nonlinear.where
    for layer in range(3):
        part = f"{top}.resdiual_stack.residual_stack.{layer}.residual_block"
        y = x
        for conv, norm in (("0", "1"), ("3", "4"), ("6", "7")):
            y = F.conv2d(y, state[f"{part}.{conv}.weight"], padding=int(conv == "3"))
            numbers = [
                state[f"{part}.{norm}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")
            ]
            y = F.batch_norm(y, *numbers)
            y = y if norm == "7" else y.relu()
        x = (x + y).relu()
    with torch.no_grad():
        torch.testing.assert_close(model.generator.adapt_top(query), x)
    assert model.temperature.item() == pytest.approx(0.03)
    torch.testing.assert_close(
        model.generator.quantise_top.code_KC, state["vqvae.quantizer_top.codebook.weight"]
    )
    # each tensor of the file has its line, and each of the model is mapped or new
    assert {*loaded.mapped, *loaded.left_out} == set(state)
    assert not set(loaded.mapped) & set(loaded.left_out)
    for name in ("vqvae.quantizer_bottom.codebook.weight", "vqvae.decoder_top.decoder.0.0.weight"):
        assert loaded.left_out[name] != UNKNOWN
    assert [name for name, why in loaded.left_out.items() if why == UNKNOWN] == ["of_nobody.weight"]
    assert all("image encoder" in why for name, why in loaded.left_out.items() if name.startswith("visual"))
    own = {name for names in loaded.mapped.values() for name in names}
    assert own | set(loaded.new) == {name for name in before if not name.startswith("vit.")}
    assert not own & set(loaded.new)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in loaded.new)
    assert "1 of them with unknown names" in loaded.summary("x")
    assert json.loads(json.dumps(loaded.as_json()))["left_out"] == loaded.left_out


def test_the_published_adapters_need_their_form(tmp_path: Path) -> None:
    torch.save(published(), tmp_path / "w.pth")
    other = tiny_model(
        "model.qformer.cross_attention_every=2", "model.generator.nonlinear=linear-relu", dtype=torch.float32
    )
    with pytest.raises(
        MuError, match=r"set model\.generator\.nonlinear=linear-relu-linear.*residual_layers=3"
    ):
        load_start(other, str(tmp_path / "w.pth"))
    without = tiny_model("model.qformer.cross_attention_every=2", "objectives.tig=0", dtype=torch.float32)
    loaded = load_start(without, str(tmp_path / "w.pth"))
    assert all(name in loaded.left_out for name in loaded.left_out if name.startswith("vqvae."))


def test_what_a_bert_becomes_is_listed(tmp_path: Path) -> None:
    blip2(2).save_pretrained(tmp_path)
    loaded = load_start(start("objectives.itm=0"), str(tmp_path))
    state = load_file(tmp_path / "model.safetensors")
    assert {*loaded.mapped, *loaded.left_out} == set(state)
    query = "qformer.encoder.layer.0.attention.attention.query.weight"
    assert loaded.mapped[query] == ["qformer.blocks.0.attention.qkv.weight"]
    assert "off" in loaded.left_out["itm_head.weight"]
    assert UNKNOWN not in loaded.left_out.values()
