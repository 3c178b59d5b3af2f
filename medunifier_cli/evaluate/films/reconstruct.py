"""Reconstruct a person's own films through the codes of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.codes import BATCH, decode, encode, need_tig
from medunifier_cli.evaluate.fidelity import psnr
from medunifier_cli.evaluate.films.answers import FilmAnswer, answers_of
from medunifier_cli.evaluate.synthesis.sample_folder import SHEET, SampleFolder, origin_of
from medunifier_cli.evaluate.user_images import UserImages
from medunifier_cli.page.pictures import save_rows

SHOWN = 12
"""Films above their reconstructions in the contact sheet."""
BLOCK = 1 << 20
"""Bytes that are hashed at a time."""
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Grey levels [S, S] of a film, and of its reconstruction."""


def reconstruct_files(
    pretrained: PretrainedRun, paths: Sequence[Path], text: str, out: Path, likeness: bool = True
) -> tuple[SampleFolder, list[FilmAnswer]]:
    """Reconstruct image files into the folder `out`; those that are there already stay.

    Args:
        paths: PNG, JPEG or DICOM; unreadable ones are reported on stderr, counted and left out.
        text: report of all of them, on which bottom codes depend; empty for no word.
        likeness: whether to tell how like the training films they are.

    Returns:
        The folder, and of each film the PSNR of its reconstruction in dB.

    Raises:
        CheckpointError: the model was trained without TIG and has no codes.
        DataError: no file can be read, or the folder cannot be used.
    """
    need_tig(pretrained)
    settings = {
        "reconstruct": _hash_of(paths),
        "text": hashlib.sha256(text.encode()).hexdigest()[:16], "pretrained": pretrained.identity,
    }  # fmt: skip
    origin = origin_of(pretrained.run.folder.name, pretrained.identity)
    folder = SampleFolder(out, settings, origin=origin)
    answers, shown = [], list[Pair]()
    found = answers_of(partial(_reconstructed, pretrained, text), pretrained, paths, likeness, BATCH)
    for number, (path, (film_SS, image_SS), seen) in enumerate(found):
        pair_11SS = (torch.from_numpy(one)[None, None] / 255.0 for one in (film_SS, image_SS))
        quality = round(float(psnr(*pair_11SS)[0]), 3)
        shown += [(film_SS, image_SS)] if len(shown) < SHOWN else []
        if number not in folder.done:
            name = f"{number:06d}.png"
            folder.add(number, name, image_SS, {"file": str(path), "psnr": quality})
        answers.append(FilmAnswer(path, {"PSNR (dB)": quality}, {"psnr": quality}, seen))
    folder.finish()
    save_rows([[pair[side] / 255.0 for pair in shown] for side in (0, 1)], out / SHEET)
    return folder, answers


def _hash_of(paths: Sequence[Path]) -> str:
    """Of names and contents: an image goes with a file by its number among those that can be read."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\n".encode(errors="surrogateescape"))
        try:
            with path.open("rb") as file:
                for block in iter(partial(file.read, BLOCK), b""):
                    digest.update(block)
        except OSError:  # reported where it is decoded
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]


def _reconstructed(pretrained: PretrainedRun, text: str, files: UserImages) -> list[Pair]:
    image_n1HW = files.image_B1HW
    top_nTT, bottom_nGG = encode(pretrained, image_n1HW, [text] * len(image_n1HW))
    return [
        (film_HW.numpy(), decode(pretrained, top_TT, bottom_GG))
        for film_HW, top_TT, bottom_GG in zip(image_n1HW[:, 0], top_nTT, bottom_nGG, strict=True)
    ]
