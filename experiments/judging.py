"""Judge images drawn by a prior in memory: the class seen in them, distance to real ones, match, variety.

What `mu score --fake` measures on folders, for experiments that make hundreds of small sets. Letters: n
images, S edge in pixels, T top edge, G bottom edge, D feature width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.classifier import restore_classifier
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import FittedPriors
from medunifier_cli.evaluate.benchmark import open_benchmark
from medunifier_cli.evaluate.codes import to_grey
from medunifier_cli.evaluate.results import mean
from medunifier_cli.evaluate.retrieval.rerank import match_probability, match_scores
from medunifier_cli.evaluate.synthesis.image_sets import SplitImages, encoder_features, query_means
from medunifier_cli.evaluate.synthesis.requests import ImageRequest
from medunifier_cli.evaluate.synthesis.synthesis import sampler
from medunifier_cli.files import write_text
from medunifier_cli.model.classifier import Classifier
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.sampling import Draws
from medunifier_cli.roots import find_run
from medunifier_cli.run.record import Run
from medunifier_cli.scores.image import frechet_distance, frechet_interval, precision_recall

BATCH = 64
"""Images per forward pass."""
OWN = "own"
"""Name of the priors' own model among those that match."""
Values = dict[str, list[float]]
"""Name -> value, and the ends of its 95 % interval where it has one."""


@dataclass(frozen=True)
class Judge:
    """A classifier fine-tuned on real images, real images to compare with, and models that match texts."""

    pretrained: PretrainedRun
    """The model in whose features distances are measured."""
    classifier: Classifier | None
    """None where the data have no classes."""
    classes: tuple[str, ...]
    real_nD: NDArray[np.float32]
    """Features of the training images of exactly one class, which is what a prompt of a class asks for;
    without a classifier, of all."""
    all_nD: NDArray[np.float32]
    """Features of the whole training split, normal films and several findings included."""
    matchers: Mapping[str, PretrainedRun]
    """Name -> a model whose ITM judges: the priors' own, and others that did not train with them."""
    classifier_hash: str = ""
    """Of the classifier's checkpoint."""

    @property
    def identity(self) -> str:
        """What its numbers are kept under; changes with each of its models."""
        others = [model.identity for name, model in self.matchers.items() if name != OWN]
        return "-".join(filter(None, [self.pretrained.identity, self.classifier_hash, *others]))

    def measure(
        self, grey_nSS: NDArray[np.uint8], asked_n: NDArray[np.int64], texts: Sequence[str]
    ) -> Values:
        """The numbers of one set of images.

        Args:
            asked_n: index of the class that each image should show; without a classifier, of its prompt.
            texts: the text that each image was drawn for.
        """
        fake_nD = np.concatenate([query_means(self.pretrained, some) for some in _chunks(grey_nSS)])
        values: Values = {}
        if self.classifier is not None:
            seen_n = np.concatenate([_class_of(self.classifier, some) for some in _chunks(grey_nSS)])
            values["class"] = _mean(seen_n == asked_n)
            for number, name in enumerate(self.classes):
                if (asked_n == number).any():
                    values[f"class, {name}"] = _mean(seen_n[asked_n == number] == number)
        interval = frechet_interval(self.real_nD, fake_nD)
        values["Fréchet"] = [frechet_distance(self.real_nD, fake_nD), interval.low, interval.high]
        values["Fréchet to all"] = [frechet_distance(self.all_nD, fake_nD)]
        manifolds = precision_recall(self.real_nD, fake_nD)
        values["precision"], values["recall"] = [manifolds.precision], [manifolds.recall]
        values["pairwise"] = [pairwise_distance(fake_nD, asked_n)]
        for name, model in self.matchers.items():
            values[f"match, {name}"] = _mean(match_of(model, grey_nSS, texts))
        return values


def _class_of(network: Classifier, grey_BSS: NDArray[np.uint8]) -> NDArray[np.int64]:
    with torch.no_grad():
        image = torch.from_numpy(grey_BSS)[:, None].to(next(network.parameters()).device)
        class_B: NDArray[np.int64] = network.head(network.queries(image)).argmax(1).cpu().numpy()
    return class_B


def open_judge(
    pretrained: PretrainedRun, matchers: Mapping[str, PretrainedRun], classifier: str = ""
) -> Judge:
    """A judge of images.

    Args:
        pretrained: the model in whose features distances are measured.
        matchers: name -> model whose ITM judges.
        classifier: run of `mu finetune`, by name or folder; empty for none.

    Raises:
        MuError: no such run, or no training split.
    """
    train = pretrained.recipe.data.train
    benchmark = open_benchmark(pretrained, split=train, need_text=False)
    every_nD = encoder_features(pretrained, SplitImages(benchmark, train))
    if not classifier:
        return Judge(pretrained, None, (), every_nD, every_nD, matchers)
    run, network, classes = restore_classifier(Run(find_run(classifier)))
    single_nD = every_nD[benchmark.source.labels >= 0]
    return Judge(pretrained, network, classes, single_nD, every_nD, matchers, run.identity)


def draw(
    fitted: FittedPriors, asked: Sequence[ImageRequest], draws: Draws, best_of: int = 1
) -> NDArray[np.uint8]:
    """An image for each request, grey levels [n, S, S]; of `best_of` candidates the closest one by ITM."""
    codes = sampler(fitted, asked, draws, best_of).codes(range(len(asked) * best_of))
    grey_nSS = decode_all(fitted.pretrained, *codes)
    if best_of > 1:
        texts = [request.prompt for request in asked for _ in range(best_of)]
        match_nk = match_of(fitted.pretrained, grey_nSS, texts).reshape(len(asked), best_of)
        grey_nSS = grey_nSS[np.arange(len(asked)) * best_of + match_nk.argmax(1)]
    return grey_nSS


def decode_all(pretrained: PretrainedRun, top_nTT: Tensor, bottom_nGG: Tensor) -> NDArray[np.uint8]:
    """Codes -> grey levels [n, S, S], in batches: the last bit may differ from `mu synthesize`'s."""
    images = []
    for top, bottom in zip(top_nTT.split(BATCH), bottom_nGG.split(BATCH), strict=True):
        with measuring():
            image = pretrained.model.generator.from_codes(
                top.to(pretrained.device), bottom.to(pretrained.device)
            )
        images.append(to_grey(image))
    return np.concatenate(images)


def match_of(model: PretrainedRun, grey_nSS: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.float64]:
    """Probability that each image matches its text, [n], by a model's ITM."""
    longest = model.recipe.text.max_tokens
    ids = [model.tokenizer.encode(text, longest) for text in texts]
    image_n1SS = torch.from_numpy(grey_nSS)[:, None]
    number_n = np.arange(len(texts))
    odds = match_scores(model, lambda some: image_n1SS[some], ids.__getitem__, number_n, number_n, quiet=True)
    return match_probability(odds)


def pairwise_distance(feature_nD: NDArray[np.float32], asked_n: NDArray[np.int64]) -> float:
    """Mean distance of two images drawn for the same class: what falls when a prior repeats itself."""
    distances = []
    for number in np.unique(asked_n):
        one_mD = torch.from_numpy(feature_nD[asked_n == number]).double()
        distances.append(torch.pdist(one_mD))
    return float(torch.cat(distances).mean())


def row_of(name: str, values: Values, columns: Sequence[str]) -> list[str]:
    """Cells of a table; the interval of a value that has one is in brackets."""
    return [name, *(_cell(values.get(column)) for column in columns)]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows))


def _cell(value: Sequence[float] | None) -> str:
    if not value:
        return ""
    if len(value) == 1:
        return f"{value[0]:.2f}"
    return f"{value[0]:.2f} ({value[1]:.2f}-{value[2]:.2f})"


def _mean(values_n: Any) -> list[float]:
    metric = mean("", values_n)
    assert metric.value is not None
    return [metric.value, *(end for end in (metric.low, metric.high) if end is not None)]


def _chunks(grey_nSS: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (grey_nSS[start : start + BATCH] for start in range(0, len(grey_nSS), BATCH))


def once(path: Path, compute: Callable[[], Any]) -> Any:
    """What `compute` gives, from its JSON file if an earlier call has written it."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    value = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return value
