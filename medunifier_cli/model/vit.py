"""Image encoder E_I (paper, equations 2 to 4): a timm vision transformer without its head.

f_v [B, 1 + V, D_v] with the class token first. Frozen, it runs without gradient; a trainable LayerNorm
follows in `medunifier.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from medunifier_cli.errors import MissingWeightsError, MuError
from medunifier_cli.model.foreign.vision import blocks_of, timm_tensors
from medunifier_cli.model.precision import full_precision, own_attention
from medunifier_cli.model.stem import convolutional_stem
from medunifier_cli.model.weights import (
    cached_file,
    existing_path,
    fitting,
    harmless_globals,
    is_hub_name,
    local_weights,
    unreadable_errors,
    why_unreadable,
    without_drawing,
)
from medunifier_cli.recipe.schema import VitConfig

PIXEL_NORMS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    # Radford et al. 2021, their published preprocessing
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    # of ImageNet's training images, as torchvision and timm have it
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of each channel."""
UNUSED = ("norm.", "fc_norm.", "head.", "head_drop.", "attn_pool.")
"""Before the names of what follows a ViT's blocks; this model has norms and heads of its own."""


def pixels(image_B1HW: Tensor) -> Tensor:
    """uint8 grey levels [B, 1, H, W] -> [0, 1] in three equal channels [B, 3, H, W]."""
    # the loader hands over one byte a pixel: a twelfth of three fp32 channels to copy to a GPU. `expand`
    # makes the channels views of one
    return (image_B1HW.float() / 255.0).expand(-1, 3, -1, -1)


def timm_arguments(recipe: VitConfig, image_size: int) -> dict[str, Any]:
    """Arguments of `timm.create_model` but for the weights."""
    sizes = {
        "patch_size": recipe.patch_size,
        "embed_dim": recipe.width,
        "depth": recipe.depth,
        "num_heads": recipe.heads,
    }
    # 0 stands for the model's own size here, while timm would take a 0 literally
    return {"img_size": image_size, "num_classes": 0, **{k: v for k, v in sizes.items() if v}}


class ImageEncoder(nn.Module):
    """The ViT.

    Args:
        recipe: name, weights and sizes.
        image_size: edge in pixels, a multiple of the patch size.
        load: False builds with random weights whatever the recipe says, for a caller that loads them from a
            checkpoint, or only measures sizes on the meta device.

    Raises:
        MuError: an unknown model, or a size that does not fit.
        MissingWeightsError: weights that are not on this machine.
    """

    def __init__(self, recipe: VitConfig, image_size: int, load: bool = True) -> None:
        super().__init__()
        self.recipe = recipe
        self.vit = _create(recipe, image_size, load)
        if not all(hasattr(self.vit, part) for part in ("blocks", "patch_embed", "embed_dim")):
            raise MuError(
                f"model.vit.name: {recipe.name} is no plain vision transformer; choose one of timm's"
            )
        if recipe.stem == "convolutions":
            _put_stem(self.vit, recipe)
        if recipe.position_std:
            _draw_positions(self.vit, recipe)
        if recipe.drop_last_block:
            self.vit.blocks = self.vit.blocks[:-1]
        # the ViT's last norm was fitted to the output of its last block, which may just have been dropped;
        # MedUnifier's trainable norm takes its place
        self.vit.norm = nn.Identity()
        self.width = int(self.vit.embed_dim)
        self.patch_size = int(self.vit.patch_embed.patch_size[0])
        self.tokens = 1 + (image_size // self.patch_size) ** 2
        if image_size % self.patch_size:
            raise MuError(
                f"image size {image_size} is not a multiple of {recipe.name}'s patch size {self.patch_size}"
            )
        if recipe.frozen:
            self.requires_grad_(False)
        mean, std = PIXEL_NORMS[recipe.pixel_norm]
        self.mean: Tensor
        self.std: Tensor
        # not persistent: constants of the recipe, which a checkpoint could only contradict
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> ImageEncoder:
        """Switch the mode; a frozen encoder stays in evaluation mode."""
        # dropout and stochastic depth would only add noise to features that are not trained
        super().train(mode and not self.recipe.frozen)
        return self

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> f_v [B, 1 + V, D_v], fp32 where the encoder is frozen.

        Raises:
            RuntimeError: its weights were left out.
        """
        if isinstance(self.vit, nn.Identity):
            raise RuntimeError("an image without cached features, in a model without its image encoder")
        x = (image_BCHW - self.mean) / self.std
        if not self.recipe.frozen:
            with own_attention(x.device):
                return self.vit.forward_features(x)  # type: ignore[no-any-return]
        # no graph through a billion frozen parameters, whoever calls; fp32 out, since the trained norm that
        # follows sums over 1,408 channels. On a GPU the weights are bf16 and autocast would only send the 78
        # norms to fp32 and back: without it training has the features that evaluation has.
        alone = full_precision if x.device.type == "cuda" else own_attention
        with torch.no_grad(), alone(x.device):
            return self.vit.forward_features(x.to(self.dtype)).float()  # type: ignore[no-any-return]

    def own_weights(self) -> None:
        """Copy the weights out of the file that they may be mapped from: whoever writes to it would change
        them."""
        for parameter in self.vit.parameters():
            parameter.data = parameter.data.clone()

    def leave_out(self) -> None:
        """Let the weights go, where cached features stand in for what they compute; sizes stay known."""
        self.vit = nn.Identity()

    def frozen_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Named weights that training never changes: a checkpoint stores their hash instead of them."""
        # a billion parameters would double the size of every checkpoint
        if self.recipe.frozen:
            yield from self.vit.state_dict().items()

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        dtype: torch.dtype = next(self.vit.parameters()).dtype
        return dtype


def _create(recipe: VitConfig, image_size: int, load: bool) -> Any:
    arguments = timm_arguments(recipe, image_size)
    # three sources with three ways into timm: its own hub entry, a file on this disk, and any hub repository
    weights = recipe.weights if load else "random"
    name, file, foreign = recipe.name, None, None
    if ":" in name:  # timm would ask the hub for it, even where nothing is to be loaded
        raise MuError(
            f"model.vit.name: {name} is no name of an architecture; model.vit.weights takes hub names and "
            "folders"
        )
    if weights == "hub":
        arguments["pretrained"] = True
    elif weights != "random":
        path = existing_path(weights)
        arguments["pretrained"] = True
        cached = cached_file(weights) if path is None and is_hub_name(weights) else None
        if path is not None:
            file = local_weights(path)
            foreign = timm_tensors(file)
            overlay: dict[str, Any] = {"file": str(file)} if foreign is None else {"state_dict": foreign}
            arguments["pretrained_cfg_overlay"] = overlay
        # transformers' BLIP-2 has no configuration of timm's, by which `hf-hub:` would find the architecture
        elif cached is not None and (foreign := timm_tensors(cached)) is not None:
            file, arguments["pretrained_cfg_overlay"] = cached, {"state_dict": foreign}
        elif is_hub_name(weights):
            name = f"hf-hub:{weights}"
        else:
            raise MissingWeightsError(
                f"model.vit.weights: {weights} is neither a folder, a file nor a hub name"
            )
    try:
        with harmless_globals():
            return _build(name, arguments, recipe)
    except MuError:
        raise  # of ours, and nothing that timm could have meant
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if "Unknown model" in str(error):
            raise MuError(f"model.vit.name: timm has no model {name}") from error
        if foreign is not None:
            arguments.pop("pretrained_cfg_overlay")  # whose tensors no message has room for
        # timm wraps what the reader of the file raised
        if file is not None and isinstance(error.__cause__, unreadable_errors()):
            raise MuError(f"model.vit.weights: {why_unreadable(file, error.__cause__)}") from error
        raise MuError(
            f"model.vit: timm cannot build {name} with {arguments}: {_first_line(error)}"
        ) from error
    except Exception as error:  # huggingface_hub has a dozen types for a network that is not there
        if file is not None:
            raise MuError(f"model.vit.weights: {why_unreadable(file, error)}") from error
        if not _is_hub_error(error):
            raise
        raise MissingWeightsError(
            f"model.vit.weights: the weights of {name} are not on this machine; on one with network run "
            f"`mu check` for what to fetch, or name a local folder"
        ) from error


def _put_stem(vit: Any, recipe: VitConfig) -> None:
    patches = vit.patch_embed
    # timm's hybrids have a network of their own in front of this map
    if not isinstance(getattr(patches, "proj", None), nn.Conv2d) or hasattr(patches, "backbone"):
        raise MuError(f"model.vit.stem: {recipe.name} does not cut images into patches; use `patches`")
    patches.proj = convolutional_stem(int(patches.patch_size[0]), int(vit.embed_dim))


def _build(name: str, arguments: Mapping[str, Any], recipe: VitConfig) -> Any:
    """`timm.create_model`, which draws a billion weights before it loads as many; here none is drawn.

    Weights of a frozen encoder are left in the file that they are mapped from.

    Raises:
        MuError: the file lacks weights that the encoder uses. timm would draw them, and say so in a log.
    """
    import timm

    if arguments.get("pretrained"):
        # whatever is wrong is found again below, and said: an architecture that computes with its weights, a
        # file that is damaged, a format that timm copies by itself
        with suppress(Exception), without_drawing(), _loading(recipe, assign=True) as lost:
            vit = timm.create_model(name, **arguments)
            if not lost and not any(tensor.is_meta for tensor in (*vit.parameters(), *vit.buffers())):
                return vit
    with _loading(recipe, assign=False) as lost:
        vit = timm.create_model(name, **arguments)
    if lost:
        raise MuError(
            f"model.vit.weights: {recipe.weights} lacks {len(lost):,} tensors of {recipe.name}, such as "
            f"{lost[0]}; name a file of this architecture, and see model.vit.depth"
        )
    return vit


@contextmanager
def _loading(recipe: VitConfig, assign: bool) -> Iterator[list[str]]:
    """While open, timm's own way of loading, with its filters, tells which weights the file lacks.

    What the encoder does not use is not missed: the last norm, and the last block where it is dropped.

    Args:
        assign: put tensors in the place of a model's, instead of copying them into it.

    Yields:
        Names of what is missing, once the file is loaded.
    """
    usual = nn.Module.load_state_dict
    lost: list[str] = []

    def load(module: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True, **_: Any) -> Any:
        # not buffers: those of timm's vision transformers are constants, which few files hold
        own = dict(module.named_parameters())
        unused = (*UNUSED, *((f"blocks.{blocks_of(own) - 1}.",) if recipe.drop_last_block else ()))
        missing = [name for name in own if name not in tensors]
        lost[:] = [name for name in missing if not name.startswith(unused)]
        # instead of random numbers: what is dropped needs values for as long as timm holds the whole network
        zeros = {name: torch.zeros(own[name].shape) for name in missing if name.startswith(unused)}
        whole = {**tensors, **zeros}
        if assign:
            whole = fitting(module, whole, copy=not recipe.frozen)
        return usual(module, whole, strict=strict, assign=assign)

    nn.Module.load_state_dict = load  # type: ignore[method-assign, assignment]
    try:
        yield lost
    finally:
        nn.Module.load_state_dict = usual  # type: ignore[method-assign]


def _draw_positions(vit: Any, recipe: VitConfig) -> None:
    # timm draws them at 0.02, while patches differ by about 0.4 (random convolution, standardised pixels):
    # attention with random weights then cannot tell places apart, and every query starts from a mean patch
    embedding = getattr(vit, "pos_embed", None)
    if embedding is None:
        raise MuError(f"model.vit.position_std: {recipe.name} has no position embeddings; leave it at 0")
    nn.init.normal_(embedding, std=recipe.position_std)


def _is_hub_error(error: Exception) -> bool:
    return (
        isinstance(error, OSError)
        or "huggingface" in type(error).__module__
        or "httpx" in type(error).__module__
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
