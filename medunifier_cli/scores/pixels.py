"""How close a reconstruction is to its image: mean absolute error, PSNR, SSIM.

Letters: N images of H x W pixels in [0, 1] (black to white), the range of the model's images.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from medunifier_cli.errors import DataError

Floats = NDArray[np.float64]

# Wang, Bovik, Sheikh, Simoncelli 2004, section III-C: an 11 x 11 Gaussian window and the two constants.
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def mean_absolute_error(images: ArrayLike, others: ArrayLike) -> Floats:
    """[N] in [0, 1]; shapes and errors as `psnr`."""
    a, b = _pairs(images, others)
    return np.array([np.abs(x - y).mean() for x, y in zip(a, b, strict=True)])


def psnr(images: ArrayLike, others: ArrayLike) -> Floats:
    """Peak signal-to-noise ratio in dB, peak 1.

    Args:
        images: [N, H, W] or [N, C, H, W] in [0, 1].
        others: the same shape; clipping a reconstruction to [0, 1] is the caller's.

    Returns:
        [N]; infinite where both are equal.

    Raises:
        DataError: no image, shapes that differ, a pixel that is NaN or outside [0, 1].
    """
    a, b = _pairs(images, others)
    error = np.array([np.square(x - y).mean() for x, y in zip(a, b, strict=True)])
    with np.errstate(divide="ignore"):
        result: Floats = -10 * np.log10(error)
    return result


def ssim(images: ArrayLike, others: ArrayLike) -> Floats:
    """Structural similarity (Wang et al. 2004), mean over whole windows and channels.

    Args:
        images: [N, H, W] or [N, C, H, W] in [0, 1], edges of 11 or more.
        others: the same shape.

    Returns:
        [N] in [-1, 1]; 1 where both are equal.

    Raises:
        DataError: as `psnr`, or an image smaller than the window.
    """
    a, b = _pairs(images, others)
    if min(a.shape[-2:]) < WINDOW:
        raise DataError(
            f"SSIM needs images of {WINDOW} x {WINDOW} or more, not {a.shape[-2]} x {a.shape[-1]}"
        )
    c1, c2 = K1**2, K2**2
    out = np.empty(len(a))
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        mean_x, mean_y = _blur(x), _blur(y)
        variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
        covariance = _blur(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        out[i] = (luminance * structure).mean()
    return out


def _blur(image: Floats) -> Floats:
    """[..., H, W] -> [..., H - 10, W - 10]: Gaussian mean of each whole window, rows and columns in turn."""
    offset = np.arange(WINDOW) - WINDOW // 2
    kernel = np.exp(-(offset**2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    rows = sliding_window_view(image, WINDOW, axis=-1) @ kernel
    result: Floats = sliding_window_view(rows, WINDOW, axis=-2) @ kernel
    return result


def _pairs(images: ArrayLike, others: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(images, dtype=np.float64), np.asarray(others, dtype=np.float64)
    if a.shape != b.shape or a.ndim not in (3, 4):
        raise DataError(
            f"images {list(a.shape)} and reconstructions {list(b.shape)} are not two equal stacks"
        )
    if not a.size:
        raise DataError("no image to compare")
    for kind, stack in (("image", a), ("reconstruction", b)):
        wrong = np.flatnonzero(~((stack >= 0) & (stack <= 1)).reshape(len(stack), -1).all(axis=1))
        if len(wrong):
            raise DataError(f"{kind} {wrong[0]} has pixels outside [0, 1] ({len(wrong):,} such)")
    return a, b
