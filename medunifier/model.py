"""The model that `medunifier.load` returns, and how a run becomes one.

n images or pairs, m texts, Q queries, E joint space of ITC, S image edge in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medunifier.answers import Classification, Codes, Prediction
from medunifier.arguments import device_of, pairs_of, texts_of
from medunifier_cli.checkpoint.pretrained import (
    PretrainedRun,
    check_pretrained,
    is_run_of,
    restore,
    run_for,
)
from medunifier_cli.checkpoint.priors import FittedPriors, priors_on, restore_priors
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate import codes as coding
from medunifier_cli.evaluate.films.likeness import Likeness, likeness_of
from medunifier_cli.evaluate.films.origin import Origin, origin_of_run
from medunifier_cli.evaluate.films.predict import Predictor, restore_predictor
from medunifier_cli.evaluate.reports.reporting import trained_sections
from medunifier_cli.evaluate.reports.writer import Decoding, GeneratedReport, Writer
from medunifier_cli.evaluate.retrieval.embed import (
    check_finite,
    embed_many_images,
    embed_texts,
    need_itc,
    token_ids,
)
from medunifier_cli.evaluate.retrieval.rerank import match_probability, match_scores
from medunifier_cli.evaluate.retrieval.zeroshot import classify
from medunifier_cli.evaluate.synthesis.requests import ImageRequest
from medunifier_cli.evaluate.synthesis.synthesis import generate
from medunifier_cli.evaluate.user_images import GivenImages, ImageLike, given_images
from medunifier_cli.model.sampling import Draws
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe

Images = ImageLike | Iterable[ImageLike]
"""One image or several: paths of PNG, JPEG or DICOM, Pillow images, arrays, tensors."""
Texts = str | Sequence[str]
"""One text or several."""
OBJECTIVES = ("itc", "itm", "itg", "tig")


def open_model(run: str | os.PathLike[str] = "", device: str | torch.device | None = None) -> Model:
    """See `medunifier.load`."""
    place = device_of(device)
    found = run_for(os.fspath(run), "load", PretrainRecipe)
    if is_run_of(found, PriorRecipe):
        fitted = restore_priors(found, place)
        return Model(fitted.pretrained, fitted)
    if is_run_of(found, FinetuneRecipe):
        predictor = restore_predictor(found, place)
        return Model(predictor.trained, predictor=predictor)
    check_pretrained(found)
    return Model(restore(found, place))


class Model:
    """A trained MedUnifier with its preprocessing.

    Every method takes one image or text or several, and answers with one row or element for each, in their
    order. Images are decoded, turned to grey levels and resized as `mu prepare` does it. Nothing is skipped:
    an image that cannot be read is an error that names it.

    Args:
        trained: the pre-trained model.
        priors: of its codes, for `generate`; None to look for them when they are needed.
        predictor: its classifier, for `predict`; of a fine-tuned run alone.
    """

    def __init__(
        self, trained: PretrainedRun, priors: FittedPriors | None = None, predictor: Predictor | None = None
    ) -> None:
        self.trained = trained
        self._priors, self._predictor = priors, predictor

    def __repr__(self) -> str:
        weights = self.trained.recipe.objectives
        objectives = " ".join(name.upper() for name in OBJECTIVES if getattr(weights, name))
        return (
            f"medunifier.Model({self.trained.run.folder}, step {self.trained.step:,}, {objectives}, "
            f"{self.image_size} pixels, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where it computes; answers are on the CPU."""
        return self.trained.device

    @property
    def image_size(self) -> int:
        """Edge in pixels of the images that the model sees."""
        return self.trained.recipe.data.image_size

    def embed_image(self, images: Images) -> NDArray[np.float32]:
        """Features of images in the joint space, [n, Q, E], each of the Q vectors of length 1.

        The similarity of an image to a text is the largest cosine over its Q vectors:
        `(embed_image(images) @ embed_text(texts).T).max(axis=1)` is [n, m].

        Raises:
            MuError: an image that cannot be read, or a model trained without ITC.
        """
        return embed_many_images(self.trained, self._images(images).image_B1HW)

    def embed_text(self, texts: Texts) -> NDArray[np.float32]:
        """Features of texts in the joint space, [m, E], of length 1.

        Raises:
            MuError: a text that is empty or too long, or a model trained without ITC.
        """
        need_itc(self.trained)
        text_mE = embed_texts(self.trained, texts_of(texts))
        check_finite(self.trained, text_mE)
        return text_mE

    def classify(
        self, images: Images, classes: Mapping[str, Texts], *, ensemble: Literal["max", "mean"] = "max"
    ) -> list[Classification]:
        """Classify images by prompts alone, as `mu zeroshot FILES --prompts YAML --count 0`.

        Args:
            classes: two or more names of your own, each with the prompts that describe it.
            ensemble: whether the best prompt of a class counts, or the mean over its prompts.

        Raises:
            MuError: an image that cannot be read, fewer than two classes, a prompt that is empty or too long,
                or a model trained without ITC.
        """
        if not isinstance(classes, Mapping) or len(classes) < 2:
            raise MuError('give two or more classes, as {"Effusion": ["Left effusion."], "Normal": [...]}')
        if ensemble not in ("max", "mean"):
            raise MuError(f"ensemble is max or mean, not {ensemble!r}")
        prompts = {name: texts_of(texts, f"classes[{name!r}]") for name, texts in classes.items()}
        given = self._images(images)
        probability_nC, scores_nC = classify(self.trained, given.image_B1HW, prompts, ensemble)
        names = list(prompts)
        return [
            Classification(
                name, names[int(probability_C.argmax())],
                dict(zip(names, probability_C.tolist(), strict=True)),
                dict(zip(names, scores_C.tolist(), strict=True)),
            )
            for name, probability_C, scores_C in zip(given.names, probability_nC, scores_nC, strict=True)
        ]  # fmt: skip

    def predict(self, images: Images) -> list[Prediction]:
        """Classify images by the head of a fine-tuned run, as `mu predict FILES`.

        Raises:
            MuError: an image that cannot be read, or a model that is no run of `mu finetune`.
        """
        if self._predictor is None:
            raise MuError(f"{self.trained.run.folder}: has no classifier; load a run of `mu finetune`")
        given, one = self._images(images), self._predictor.kind == "one"
        return [
            Prediction(name, dict(zip(self._predictor.classes, values_C.tolist(), strict=True)), one)
            for name, values_C in zip(given.names, self._predictor.predict(given.image_B1HW), strict=True)
        ]

    def likeness(self, images: Images) -> list[Likeness]:
        """How like the films that the run was trained on each image is; the first call looks at these.

        Raises:
            MuError: an image that cannot be read.
        """
        return likeness_of(self.trained, self._images(images).image_B1HW)

    @property
    def origin(self) -> Origin:
        """Run, checkpoint and training data of all that the model says."""
        return origin_of_run(self.trained)

    def report(self, images: Images, decoding: Decoding | None = None) -> list[GeneratedReport]:
        """Write a radiology report of each image, as `mu report FILES`.

        Args:
            decoding: how words are chosen; by default beam search with three beams.

        Raises:
            MuError: an image that cannot be read, a model trained without ITG, or a setting out of range.
        """
        writer = Writer(self.trained, decoding or Decoding(), trained_sections(self.trained))
        given = self._images(images)
        return writer.write_many(given.image_B1HW, given.keys)

    def match(self, images: Images, texts: Texts) -> NDArray[np.float64]:
        """Probability that image and text belong together, [n] in [0, 1]: the judgement of the ITM head.

        Args:
            texts: one for each image; or one text for several images, or several for one image.

        Raises:
            MuError: an image that cannot be read, a text that is empty or too long, numbers of images and
                texts that do not fit, or a model trained without ITM.
        """
        given, listed = self._images(images).image_B1HW, texts_of(texts)
        pairs = pairs_of(len(given), len(listed))
        ids = token_ids(self.trained, listed)
        image_n, text_n = (np.arange(pairs) % count for count in (len(given), len(listed)))
        logodds = match_scores(
            self.trained, lambda rows: given[torch.from_numpy(rows)], ids.__getitem__, image_n, text_n,
            quiet=True,
        )  # fmt: skip
        return match_probability(logodds)

    def encode(self, images: Images, texts: Texts = "") -> Codes:
        """Discrete codes of images.

        Args:
            texts: the report of each image, or one for all, as in training: the bottom codes depend on it.
                By default no word.

        Raises:
            MuError: an image that cannot be read, numbers of images and texts that do not fit, or a model
                trained without TIG.
        """
        given, listed = self._images(images).image_B1HW, texts_of(texts)
        if len(listed) == 1:
            listed *= len(given)
        if len(listed) != len(given):
            raise MuError(f"{len(given):,} images and {len(listed):,} texts; give one text for each, or one")
        top, bottom = coding.encode(self.trained, given, listed)
        return Codes(top.numpy(), bottom.numpy())

    def decode(self, codes: Codes) -> list[Image.Image]:
        """Images of codes: grey levels, S x S pixels.

        Raises:
            MuError: codes of another size or of a larger codebook, or a model trained without TIG.
        """
        coding.need_tig(self.trained)
        generator, books = self.trained.model.generator, self.trained.recipe.model.generator.codebook_size
        for name, level, edge in (
            ("top", codes.top, generator.top), ("bottom", codes.bottom, generator.grid)
        ):  # fmt: skip
            if level.shape[1:] != (edge, edge):
                raise DataError(f"{name} codes are {level.shape}, and this model's [n, {edge}, {edge}]")
            if level.size and not (level.min() >= 0 and level.max() < books):
                raise DataError(f"{name} codes are not all from 0 to {books - 1}: those of another model")
        levels = (torch.from_numpy(np.ascontiguousarray(level)) for level in (codes.top, codes.bottom))
        return [
            Image.fromarray(coding.decode(self.trained, top, bottom))
            for top, bottom in zip(*levels, strict=True)
        ]

    def generate(
        self, prompts: Texts = (), n: int | None = None, *, seed: int = 0, temperature: float = 1.0,
        top_k: int = 0, top_p: float = 1.0, guidance: float = 1.0, best_of: int = 1,
    ) -> list[Image.Image]:  # fmt: skip
        """New radiographs, S x S pixels, as `mu synthesize`: the same seed and prompts give the same images.

        Args:
            prompts: worded like a report, taken in turn; none for images of anything.
            n: number of images; by default one for each prompt, or one.
            temperature, top_k, top_p: of sampling codes, see `Draws`.
            guidance: above 1 images follow the prompt more closely.
            best_of: images drawn for each one, of which `match` keeps the closest to its prompt.

        Raises:
            MuError: no priors were fitted on the model, or without text where there are prompts; a prompt
                that is empty or too long; or a setting out of range.
        """
        requests = [
            ImageRequest(prompt, f"prompts[{number}]")
            for number, prompt in enumerate(texts_of(prompts, "prompts") if prompts else ())
        ]
        count = (len(requests) or 1) if n is None else n
        if count < 1:
            raise MuError(f"n is 1 or more images, not {n}")
        if best_of < 1:
            raise MuError(f"best_of is 1 or more images, not {best_of}")
        if self._priors is None:
            run = priors_on(self.trained.run, "generate")
            self._priors = restore_priors(run, pretrained=self.trained)
        draws = Draws(seed, temperature, top_k, top_p, guidance)
        images = generate(self._priors, count, requests, draws, best_of)
        return [Image.fromarray(image) for image in images]

    def _images(self, images: Images) -> GivenImages:
        return given_images(images, self.image_size)
