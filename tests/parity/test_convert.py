"""Load weights under the names of other projects; test_qformer tests that the numbers are right."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel

from medunifier_cli.checkpoint.convert import load_bert
from medunifier_cli.errors import MissingWeightsError, MuError
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.weights import weights_path
from tests import warm
from tests.parity.test_qformer import bert, blip2
from tests.tiny import VOCABULARY, scatter, tiny_model


def ours(*overrides: str) -> MedUnifier:
    return tiny_model("model.qformer.cross_attention_every=2", *overrides, seed=4, dtype=torch.float32)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """BLIP-2 as transformers writes it, cross-attention in every second block."""
    folder = tmp_path / "transformers"
    blip2(2).save_pretrained(folder)
    return folder


def as_lavis(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as Salesforce's LAVIS names them, with parts of its checkpoints we do not use."""
    named = {}
    for name, tensor in state.items():
        if name.startswith("vision_model."):
            name = name.replace("vision_model.post_layernorm", "ln_vision")
            if not name.startswith("ln_vision"):
                name = f"visual_encoder.{name}"
        name = name.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")
        name = name.replace("qformer.encoder", "Qformer.bert.encoder")
        name = name.replace("attention.attention.", "attention.self.")
        name = name.replace("vision_projection", "vision_proj").replace("text_projection", "text_proj")
        if name.startswith("embeddings."):
            name = f"Qformer.bert.{name}"
        named[name] = tensor
    named["temp"] = torch.tensor(0.05)
    named["Qformer.bert.embeddings.position_ids"] = torch.arange(16)[None]
    return named


def test_lavis_and_transformers_spell_the_same_weights(hub_folder: Path, tmp_path: Path) -> None:
    state = load_file(hub_folder / "model.safetensors")
    lavis = as_lavis(state)
    assert "Qformer.bert.encoder.layer.0.crossattention.self.query.weight" in lavis
    torch.save({"model": lavis, "epoch": 3}, tmp_path / "blip2.pth")
    one, other = ours(), ours()
    left = load_bert(one, str(hub_folder))
    assert load_bert(other, str(tmp_path / "blip2.pth")) == left
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    # all of the Q-Former and its heads is there; what BLIP-2 does not have is named
    assert {name.split(".")[0] for name in left} == {"generator", "temperature", "word_head"}
    torch.testing.assert_close(one.vision_norm.weight, state["vision_model.post_layernorm.weight"])
    torch.testing.assert_close(one.match_head.weight, state["itm_head.weight"])


def test_a_tensorflow_era_bert(tmp_path: Path) -> None:
    """BERT's first checkpoints call a norm's weights gamma and beta."""
    model = bert()
    model.save_pretrained(tmp_path / "new")
    state = load_file(tmp_path / "new" / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    (tmp_path / "old").mkdir()
    torch.save(old, tmp_path / "old" / "pytorch_model.bin")
    one, other = ours(), ours()
    load_bert(one, str(tmp_path / "new"))
    load_bert(other, str(tmp_path / "old"))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_bert_without_a_prediction_head_leaves_ours(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY - 1, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    theirs = BertModel(config)
    scatter(theirs)
    theirs.save_pretrained(tmp_path)
    model = ours()
    before = model.word_head.transform.weight.clone()
    left = load_bert(model, str(tmp_path))
    assert "word_head.transform.weight" in left
    assert torch.equal(model.word_head.transform.weight, before)
    # four layers there, three here: the first three
    torch.testing.assert_close(
        model.qformer.blocks[2].attention.out.weight, theirs.encoder.layer[2].attention.output.dense.weight
    )


def test_parts_of_objectives_that_are_off_are_not_asked_for(hub_folder: Path) -> None:
    model = ours("objectives.itc=0.0", "objectives.itm=0.0")
    load_bert(model, str(hub_folder))
    assert not hasattr(model, "match_head")


def test_cross_attention_must_stand_in_the_same_blocks(hub_folder: Path) -> None:
    with pytest.raises(
        MuError, match=r"cross-attention in 2 layers, the recipe in 3.*cross_attention_every=2"
    ):
        load_bert(tiny_model(dtype=torch.float32), str(hub_folder))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.qformer.width=16", "is 32 wide, the recipe's model 16"),
        ("model.qformer.ffn_width=48", r"ffn_text.* of shape"),
        ("text.max_tokens=20", "text.max_tokens: 20 is more than the 16 positions"),
    ],
)
def test_weights_of_another_size(tmp_path: Path, override: str, message: str) -> None:
    bert().save_pretrained(tmp_path)
    with pytest.raises(MuError, match=message) as error:
        load_bert(ours(override), str(tmp_path))
    assert "\n" not in str(error.value)


def test_tokenizer_and_weights_belong_together(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(MuError, match=f"30 words, the tokenizer {VOCABULARY}"):
        load_bert(ours(), str(tmp_path))


def test_something_else_than_a_bert(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(MuError, match=r"holds no BERT or BLIP-2 encoder; its tensors are conv1\.weight"):
        load_bert(ours(), str(tmp_path))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, ("raise SystemExit('ran')",)

    torch.save({"bert.encoder.layer.0.attention.self.query.weight": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        MuError, match=r"pytorch_model\.bin: would run .*exec when loaded; delete it"
    ) as error:
        load_bert(ours(), str(tmp_path))
    assert "\n" not in str(error.value)
    assert "python -c" not in str(error.value), "no way to load it is offered"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(MuError, match=r"model\.safetensors") as error:
        load_bert(ours(), str(tmp_path))
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingWeightsError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        load_bert(ours(), str(tmp_path))
    with pytest.raises(MissingWeightsError, match="hf download nobody/never-heard-of"):
        load_bert(ours(), "nobody/never-heard-of")
    with pytest.raises(
        MissingWeightsError, match="no/such/folder is neither a folder, a file nor a hub name"
    ):
        load_bert(ours(), "no/such/folder")


def test_a_cached_hub_name_is_found(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def cached(name: str, file: str) -> str | None:
        path = hub_folder / file
        return str(path) if name == "org/blip" and path.exists() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    assert weights_path("model.qformer.weights", "org/blip") == hub_folder / "model.safetensors"


def _bert_tensors(tmp_path: Path) -> dict[str, Tensor]:
    bert().save_pretrained(tmp_path / "plain")
    return load_file(tmp_path / "plain" / "model.safetensors")


def _prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def _checkpoints(state: dict[str, Tensor]) -> dict[str, object]:
    """One BERT as the trainers of this field write it."""
    rng = np.random.default_rng(0)
    return {
        "DistributedDataParallel": _prefixed(state, "module."),
        "Lightning": {"state_dict": _prefixed(state, "model."), "hyper_parameters": {"lr": 1e-4}},
        "compiled under DDP": {"model_state_dict": _prefixed(state, "module._orig_mod."), "epoch": 3},
        "DDP around Lightning": {"state_dict": _prefixed(state, "module.model.")},
        "DeepSpeed": {"module": state, "global_steps": 5},
        "twice": {"model": {"state_dict": state}},
        "a best score": {"model": state, "best": np.float64(0.5), "hits": np.int32(3), "up": np.bool_(True)},
        "random states": {"model": state, "rng": rng.integers(0, 9, 624), "loss": np.float32([1, 2])},
    }


@pytest.mark.parametrize("trainer", _checkpoints({}))
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_other_trainers(tmp_path: Path, trainer: str, zipped: bool) -> None:
    state = _bert_tensors(tmp_path)
    path = tmp_path / "theirs.ckpt"
    torch.save(_checkpoints(state)[trainer], path, _use_new_zipfile_serialization=zipped)
    one, other = ours(), ours()
    load_bert(one, str(tmp_path / "plain"))
    load_bert(other, str(path))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_bert_inside_a_larger_model(tmp_path: Path) -> None:
    state = _bert_tensors(tmp_path)
    tower = {
        name.replace("bert.", "clip.text_encoder.model."): tensor
        for name, tensor in state.items()
        if name.startswith("bert.")
    }
    image = {"clip.image_encoder.encoder.layer.0.attention.output.dense.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": {**image, **tower}, "epoch": 3}, tmp_path / "clip.ckpt")
    one, other = ours(), ours()
    load_bert(one, str(tmp_path / "plain"))
    load_bert(other, str(tmp_path / "clip.ckpt"))
    for name, tensor in one.qformer.state_dict().items():
        assert torch.equal(tensor, other.qformer.state_dict()[name]), name


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_that_holds_more_than_tensors_says_what_and_how_to_save_them(
    tmp_path: Path, zipped: bool, whole: bool
) -> None:
    state = _bert_tensors(tmp_path)
    path = tmp_path / "theirs.pth"
    model = {"model": state, "args": argparse.Namespace(lr=1e-4)}
    torch.save(torch.nn.Linear(2, 2) if whole else model, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(MuError, match="holds more than tensors") as error:
        load_bert(ours(), str(path))
    message = str(error.value)
    assert "\n" not in message
    assert "damaged" not in message
    assert ("torch.nn.modules.linear.Linear" if whole else "argparse.Namespace") in message
    command = re.search(r"`python -m (\S+) FILE`", message)
    assert command
    # what the message proposes works
    done = warm.run(["-m", command[1], path], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "tensors.pth", weights_only=True)
    assert set(saved) == ({"weight", "bias"} if whole else set(state))
    if not whole:
        load_bert(ours(), str(tmp_path / "tensors.pth"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2, 3], "holds a list of 3 items, no tensors by name"),
        ({"model": {"lr": 0.1, "epoch": 3}}, r"holds lr \(float\), epoch \(int\), no tensors by name"),
        ({}, "holds nothing, no tensors by name"),
        (torch.zeros(2), "holds a Tensor of 2 items, no tensors by name"),
    ],
)
def test_a_file_without_named_tensors_says_what_it_holds(
    tmp_path: Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "theirs.pth")
    with pytest.raises(MuError, match=message) as error:
        load_bert(ours(), str(tmp_path / "theirs.pth"))
    assert "torch.save(model.state_dict(), FILE)" in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a page of text instead of the weights"),
        (b"", "damaged"),
    ],
)
def test_what_came_instead_of_the_weights(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MuError, match=message) as error:
        load_bert(ours(), str(tmp_path))
    assert "\n" not in str(error.value)
