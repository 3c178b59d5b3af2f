"""Images and texts as the exported model takes them: an image processor, BERT's tokenizer, and both in one.

B images, T texts, S edge in pixels, L longest text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, BertTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.given import levels_of
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.data.texts.tokenizer import (
    CLS,
    DEC,
    MASK,
    PAD,
    SAVED,
    SEP,
    UNK,
    VOCABULARY,
    TextTokenizer,
)
from medunifier_cli.errors import DataError
from medunifier_cli.files import write_text
from medunifier_cli.model.vit import pixels

INPUTS = ["input_ids", "attention_mask"]
"""What the model reads of a text; it has no token types."""


class MedUnifierImageProcessor(BaseImageProcessor):  # type: ignore[misc]
    """Decode, turn to grey levels and resize, by the code that prepares training images.

    Args:
        size: `{"height": S, "width": S}`, the model's edge in pixels; the aspect ratio is not kept.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own spelling

    def __init__(self, size: dict[str, int] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size or {"height": 224, "width": 224}

    def preprocess(self, images: Any, return_tensors: str | None = None, **_: Any) -> BatchFeature:
        """One image or several -> `pixel_values`, float32 in [0, 1], [B, 3, S, S].

        Args:
            images: each a path (PNG, JPEG, DICOM and others, told apart by content), a Pillow image, or an
                array or tensor [H, W], [H, W, 3] or [3, H, W], see `data.images.given.levels_of`.
            return_tensors: `pt` or `np`; by default a list of tensors.

        Raises:
            DataError: not an image, damaged, blank, or levels of another type.
        """
        several = list(images) if isinstance(images, list | tuple) else [images]
        if not several:
            raise DataError("no image was given")
        grey = [read_image(image, self.size["height"]) for image in several]
        image_BCHW = pixels(torch.from_numpy(np.stack(grey)[:, None])).contiguous()
        values = image_BCHW.numpy() if return_tensors == "np" else image_BCHW
        return BatchFeature(
            data={"pixel_values": list(values) if return_tensors is None else values},
            tensor_type=return_tensors,
        )


class MedUnifierProcessor(ProcessorMixin):  # type: ignore[misc]
    """Image processor and tokenizer in one.

    Args:
        image_processor: a `MedUnifierImageProcessor`.
        tokenizer: as `bert_tokenizer` makes it.
    """

    attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 - transformers' own spelling
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)  # type: ignore[no-untyped-call]

    def __call__(
        self, images: Any = None, text: Any = None, return_tensors: str | None = "pt", **kwargs: Any
    ) -> BatchFeature:
        """The arguments of `MedUnifierModel.forward`.

        Args:
            images: see `MedUnifierImageProcessor.preprocess`.
            text: one text or several, which are padded, and cut at the model's longest text.
            return_tensors: as transformers has it.
            kwargs: for the tokenizer.

        Raises:
            DataError: neither images nor texts, or as the image processor.
        """
        if images is None and text is None:
            raise DataError("neither an image nor a text was given")
        data: dict[str, Any] = {}
        if text is not None:
            settings = {"padding": True, "truncation": True, **kwargs}
            several = [text] if isinstance(text, str) else list(text)
            data |= self.tokenizer(several, return_tensors=return_tensors, **settings)
        if images is not None:
            data |= self.image_processor(images, return_tensors=return_tensors)
        return BatchFeature(data=data)


def read_image(image: Any, size: int) -> NDArray[np.uint8]:
    """One image of any kind that `MedUnifierImageProcessor.preprocess` takes, grey levels [size, size].

    Raises:
        DataError: as there.
    """
    of_file = isinstance(image, str | Path)
    shown = str(image) if of_file else f"an image of type {type(image).__name__}"
    try:
        if of_file:
            return image_from(FileImage(Path(image)), size).pixels
        if not isinstance(image, Image.Image | Tensor):
            image = np.asarray(image)
            # transformers has channels first in arrays too
            if image.ndim == 3 and image.shape[0] in (1, 3) and image.shape[2] not in (1, 3):
                image = np.moveaxis(image, 0, 2)
        return levels_of(image, size)
    except BadImage as error:
        raise DataError(f"{shown}: {str(error).rstrip(': ')}") from error


def bert_tokenizer(tokenizer: TextTokenizer, longest: int) -> BertTokenizer:
    """A run's tokenizer as transformers has it; it gives the same ids.

    Args:
        longest: tokens of a text, [CLS] and [SEP] included.
    """
    ids = {token: number for number, token in enumerate(tokenizer.tokens)}
    # a token that the vocabulary lacks would get an id that the model has no embedding for
    mask: Any = MASK if MASK in ids else None
    return BertTokenizer(
        vocab=ids,
        do_lower_case=tokenizer.lowercase,
        strip_accents=tokenizer.strip_accents,
        cls_token=CLS, sep_token=SEP, pad_token=PAD, unk_token=UNK,
        mask_token=mask,
        extra_special_tokens=[DEC],
        model_max_length=longest,
        model_input_names=INPUTS,
        # `[SEP]` in a text is five words, as in training, and does not end it
        split_special_tokens=True,
    )  # fmt: skip


def save_processor(
    tokenizer: TextTokenizer, size: int, longest: int, folder: Path, texts_of: Path | None
) -> None:
    """Write what `AutoProcessor`, `AutoImageProcessor`, `AutoTokenizer` and `TextTokenizer` read.

    Args:
        size: S.
        longest: L.
        texts_of: data whose words the tokenizer learned, see `files.atomic_write`.
    """
    image_processor = MedUnifierImageProcessor(size={"height": size, "width": size})
    MedUnifierProcessor(image_processor, bert_tokenizer(tokenizer, longest)).save_pretrained(folder)
    # AutoProcessor reads it from its own file, AutoImageProcessor alone and other programs from this one
    image_processor.save_pretrained(folder)
    vocabulary = "".join(token + "\n" for token in tokenizer.tokens)
    write_text(folder / VOCABULARY, vocabulary, texts_of=texts_of)
    if texts_of is not None:  # transformers has written the same words with the usual rights
        (folder / SAVED).chmod((folder / VOCABULARY).stat().st_mode & 0o777)
