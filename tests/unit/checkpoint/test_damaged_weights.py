"""Weight files that are damaged or hostile: one line, and neither much time nor much memory."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from medunifier_cli.checkpoint.convert import load_bert
from medunifier_cli.errors import MuError, one_line
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.model.weights import read_tensors, weights_path
from medunifier_cli.recipe.schema import VitConfig
from tests.hostile import changed_bytes
from tests.tiny import tiny_model

WIDTH = 32


@pytest.fixture(scope="module")
def model() -> MedUnifier:
    return tiny_model(dtype=torch.float32)


def bert() -> dict[str, Any]:
    tensors = {
        "embeddings.word_embeddings.weight": torch.ones(40, WIDTH),
        "embeddings.position_embeddings.weight": torch.ones(16, WIDTH),
        "embeddings.token_type_embeddings.weight": torch.ones(2, WIDTH),
    }
    for part in ("query", "key", "value"):
        tensors[f"encoder.layer.0.attention.self.{part}.weight"] = torch.ones(WIDTH, WIDTH)
    return tensors


def packed(content: object, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def test_the_tensors_of_these_tests_are_a_bert(tmp_path: Path, model: MedUnifier) -> None:
    (tmp_path / "w.bin").write_bytes(packed(bert()))
    assert load_bert(model, str(tmp_path / "w.bin"))


@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
             "embeddings.token_type_embeddings.weight", "encoder.layer.0.attention.self.key.weight",
             "query_tokens", "cls.predictions.bias"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 7), (0, WIDTH)])
def test_tensors_of_other_shapes(
    tmp_path: Path, model: MedUnifier, name: str, shape: tuple[int, ...]
) -> None:
    (tmp_path / "w.bin").write_bytes(packed(bert() | {name: torch.zeros(shape)}))
    with pytest.raises(MuError) as caught:
        load_bert(model, str(tmp_path / "w.bin"))
    assert str(tmp_path) in str(caught.value) or "max_tokens" in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        {3: torch.zeros(2)},
        {"x" * 400: torch.zeros(2)},
        {"huge": torch.zeros(1).expand(1 << 40)},
        {"sparse": torch.zeros(2, 2).to_sparse()},
        {"complex": torch.zeros(2, dtype=torch.complex64)},
        {"meta": torch.zeros(2, device="meta")},
        {"no tensor": 3},
    ],
)
def test_what_is_no_plain_tensor_is_not_taken(tmp_path: Path, odd: dict[Any, Any]) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(packed(odd))
    with pytest.raises(MuError, match="no tensors by name"):
        read_tensors(path)
    path.write_bytes(packed(odd | {"plain": torch.ones(2)}))
    assert list(read_tensors(path)) == ["plain"]


def test_a_packed_file_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(1 << 20))
    with pytest.raises(MuError, match="packed, which no file of weights is; unpack it first"):
        read_tensors(path)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_changed_bytes(tmp_path: Path, model: MedUnifier, kind: str) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.bin")
    whole = save(bert()) if kind == "safetensors" else packed(bert(), kind == "zip")
    draws, lines = random.Random(kind), []
    for number in range(60):
        # the ends, where the names and sizes are: what lies between are numbers, and any number is one
        cut = 1500 if number % 2 else len(whole) - 1500
        start, end = whole[:cut], whole[cut:]
        ends = (changed_bytes(start, draws), end) if number % 2 else (start, changed_bytes(end, draws))
        path.write_bytes(b"".join(ends))
        try:
            load_bert(model, str(path))
        except MuError as error:
            lines.append(str(error))
    assert len(lines) > 10
    assert lines == [one_line(line) for line in lines]


@pytest.mark.parametrize("source", ["x" * 5000, "a\0b", "~nobody-of-that-name/x", "a/b/c"])
def test_a_source_that_no_file_can_be(source: str) -> None:
    with pytest.raises(MuError, match="is neither a folder, a file nor a hub name"):
        weights_path("model.qformer.weights", source)


@pytest.mark.parametrize("name", ["hf-hub:some/vit", "local-dir:/tmp", "resnet18", "x" * 500, "a\x1bb"])
def test_an_image_encoder_that_is_none(name: str) -> None:
    with pytest.raises(MuError, match=r"^model\.vit") as caught:
        ImageEncoder(VitConfig(name=name), 32, load=False)
    assert str(caught.value) == one_line(str(caught.value))
