"""What a program gives to a model besides images: texts, and a device to compute on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from medunifier_cli.errors import MuError


def texts_of(texts: Any, name: str = "texts") -> list[str]:
    """One text or several, as a list; they may be reports, so a message names them and never quotes them."""
    listed = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, Iterable) else [texts]
    for number, text in enumerate(listed):
        if not isinstance(text, str):
            raise MuError(f"{name}[{number}]: {type(text).__name__} is no text")
    if not listed:
        raise MuError(f"{name}: no text given")
    return listed


def pairs_of(images: int, texts: int) -> int:
    if images != texts and 1 not in (images, texts):
        raise MuError(
            f"{images:,} images and {texts:,} texts do not pair up; give as many of both, or one of either"
        )
    return max(images, texts)


def device_of(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        place = torch.device(device)
        torch.empty(0, device=place)  # which fails without a GPU, or with a number that none has
    except (RuntimeError, AssertionError) as error:
        raise MuError(f"device {str(device)!r}: PyTorch has no such device on this machine") from error
    return place
