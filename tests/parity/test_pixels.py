"""PSNR and SSIM against their definitions, one window at a time."""

from __future__ import annotations

import numpy as np
import pytest

from medunifier_cli.errors import DataError
from medunifier_cli.scores.pixels import mean_absolute_error, psnr, ssim
from tests.reference.slow_ssim import slow_ssim


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Smooth pictures of 32 x 41 and noisy copies."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:41]
    images = np.stack([0.5 + 0.5 * np.sin(x / f) * np.cos(y / (f + 1)) for f in (2, 5, 9)])
    return images, np.clip(images + 0.1 * rng.standard_normal(images.shape), 0, 1)


def test_ssim_equals_the_definition() -> None:
    images, noisy = pictures()
    expected = [slow_ssim(a, b) for a, b in zip(images, noisy, strict=True)]
    assert max(expected) < 0.95
    np.testing.assert_allclose(ssim(images, noisy), expected, atol=1e-10)
    channels = ssim(images[None], noisy[None])  # three channels of one image
    np.testing.assert_allclose(channels, [np.mean(expected)], atol=1e-10)


def test_equal_images_are_perfect() -> None:
    images, _ = pictures()
    np.testing.assert_allclose(ssim(images, images), 1)
    assert np.isinf(psnr(images, images)).all()
    assert (mean_absolute_error(images, images) == 0).all()


def test_psnr_of_a_known_error() -> None:
    """An error of 0.1 everywhere is 20 dB, one of 0.01 is 40."""
    black = np.zeros((2, 3, 12, 12))
    grey = np.stack([np.full((3, 12, 12), 0.1), np.full((3, 12, 12), 0.01)])
    np.testing.assert_allclose(psnr(black, grey), [20, 40])
    np.testing.assert_allclose(mean_absolute_error(black, grey), [0.1, 0.01])


def test_bad_input_is_said_in_one_line() -> None:
    images, noisy = pictures()
    nan = noisy.copy()
    nan[1, 3, 4] = np.nan
    cases = [
        (lambda: psnr(images, noisy[:2]), "not two equal stacks"),
        (lambda: psnr(images[:0], noisy[:0]), "no image"),
        (lambda: ssim(images, nan), "reconstruction 1 has pixels outside"),
        (lambda: psnr(images * 255, noisy), "image 0 has pixels outside"),
        (lambda: ssim(images[:, :8], noisy[:, :8]), "11 x 11 or more, not 8 x 41"),
    ]
    for call, words in cases:
        with pytest.raises(DataError, match=words) as error:
            call()
        assert "\n" not in str(error.value)
