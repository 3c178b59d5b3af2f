"""The image tower and the text tower as ONNX: pixels -> joint space, token ids -> joint space.

    image.onnx   pixel_values [B, 3, S, S] float32 in [0, 1]                       -> image_embeds [B, Q, E]
    text.onnx    input_ids, attention_mask [T, L] int64, padded on the right       -> text_embeds [T, E]

B, T and L may be any number, L up to the model's longest text. Similarity is the largest of the Q cosines.
Packages of the extra `onnx` write the files; each is compared with PyTorch where onnxruntime is installed.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import MuError
from medunifier_cli.model.attention.masks import attend, by_head
from medunifier_cli.model.medunifier import MedUnifier

WRITERS = ("onnx", "onnxscript")
READER = "onnxruntime"
TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir")
"""Loggers that report each operation which they leave as it is."""
TOLERANCE = 1e-4
"""Largest difference of a coordinate of an embedding, all of which are of length 1."""
EXAMPLES = 2
"""Images, or texts, that an exported tower is traced and compared with."""


class ImageTower(nn.Module):
    """Pixels in [0, 1], [B, 3, S, S] -> [B, Q, E], each of length 1."""

    def __init__(self, model: MedUnifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As the class says."""
        features: Tensor = self.model.image_head(self.model.encode_image(pixel_values).query_BQD)
        return features


class TextTower(nn.Module):
    """Token ids [T, L] with their mask -> [T, E], each of length 1.

    The same layers as `QFormer.encode_text`, on a padded grid: the packed rows that it works on are as many
    as there are words, which no graph of fixed operations can know.
    """

    def __init__(self, model: MedUnifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As the class says; `attention_mask` is 1 on tokens and 0 on padding, which is on the right."""
        qformer = self.model.qformer
        place_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        text_TLD = qformer.norm(qformer.word(input_ids) + qformer.position(place_L))
        open_T11L = attention_mask.bool()[:, None, None, :]
        block: Any
        for block in qformer.blocks:
            own = block.attention
            q, k, v = (by_head(part, own.heads) for part in own.qkv(text_TLD).chunk(3, dim=2))
            text_TLD = block.ffn_text(own.finish(attend(q, k, v, open_T11L, 0.0), text_TLD))
        features: Tensor = self.model.text_head(text_TLD[:, 0])
        return features


def need_onnx() -> None:
    """Raises MuError, which says what to install, unless the packages that write ONNX are installed."""
    lacking = [name for name in WRITERS if importlib.util.find_spec(name) is None]
    if lacking:
        raise MuError(f"--onnx needs {' and '.join(lacking)}: pip install 'medunifier[onnx]'")


def write_towers(trained: PretrainedRun, folder: Path) -> dict[str, float | None]:
    """Write `image.onnx` and `text.onnx`.

    Args:
        trained: on the CPU, with ITC.

    Returns:
        Of each file, its largest difference to PyTorch; None where onnxruntime is not installed.

    Raises:
        MuError: a file that computes something else than PyTorch does, by more than `TOLERANCE`.
    """
    need_onnx()
    size, longest = trained.recipe.data.image_size, trained.recipe.text.max_tokens
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(EXAMPLES, 3, size, size, generator=generator)
    ids = torch.randint(0, trained.tokenizer.size, (EXAMPLES, longest), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, longest // 2 :] = 0
    batch, texts = torch.export.Dim("batch"), torch.export.Dim("texts")
    shape = {0: texts, 1: torch.export.Dim("length", min=2, max=longest)}
    return {
        "image.onnx": _write(
            ImageTower(trained.model), {"pixel_values": image}, {"pixel_values": {0: batch}},
            "image_embeds", folder / "image.onnx",
        ),
        "text.onnx": _write(
            TextTower(trained.model), {"input_ids": ids, "attention_mask": mask},
            {"input_ids": shape, "attention_mask": shape}, "text_embeds", folder / "text.onnx",
        ),
    }  # fmt: skip


def _write(
    tower: nn.Module, inputs: Mapping[str, Tensor], shapes: Mapping[str, Any], output: str, path: Path
) -> float | None:
    """Write one tower; returns its difference to PyTorch, or None if nothing here can run it."""
    tower.eval()
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own internals
        torch.onnx.export(
            tower, (), str(path), kwargs=dict(inputs), input_names=list(inputs), output_names=[output],
            dynamic_shapes=dict(shapes), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
        expected = tower(**inputs)
    if importlib.util.find_spec(READER) is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run([output], {name: tensor.numpy() for name, tensor in inputs.items()})
    difference = float((torch.from_numpy(found) - expected).abs().max())
    if not difference <= TOLERANCE:  # NaN as well
        raise MuError(
            f"{path}: differs from PyTorch by {difference:.2g}, more than {TOLERANCE:g}; not exported"
        )
    return difference
