"""Classify files by prompts: by the classes of a data set or a person's own, one class each or several.

n films, C classes, P prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.texts.no_finding import NO_FINDING
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.films.answers import FilmAnswer, answers_of, named
from medunifier_cli.evaluate.retrieval.embed import embed_many_images, need_itc, token_ids
from medunifier_cli.evaluate.retrieval.prompts import Prompts
from medunifier_cli.evaluate.retrieval.zeroshot import class_probabilities, class_scores
from medunifier_cli.evaluate.user_images import UserImages
from medunifier_cli.parsing import read_yaml
from medunifier_cli.scores.classification import softmax

OF_SEVERAL = 0.5
"""Threshold of a class of several where none is given: likelier than its negation."""
DIGITS = 6
FORM = "write it as `class: [prompt, prompt, ...]`"


@dataclass(frozen=True)
class Question:
    """What files are classified by."""

    classes: Prompts
    """Class -> prompts, all of which are used."""
    over: str = "max"
    """`max` or `mean` over the prompts of a class."""
    no_finding: str = ""
    """Prompt of a further class `No Finding`; empty to offer none."""
    multi_label: bool = False
    """Each class is compared with its negation alone, and a film may have several."""
    threshold: float | None = None
    """Probability from which a class is named; None for 0.5 of several, and for the likeliest of one."""

    def negations(self, name: str) -> list[str]:
        """Prompts that say that a class is absent: a class `no NAME` where there is one, else a sentence made
        of its name; and those of no finding."""
        own = [texts for other, texts in self.classes.items() if other.lower() == f"no {name.lower()}"]
        absent = list(own[0]) if own else [f"No {name.lower()}."]
        nothing = [texts for other, texts in self.classes.items() if other.lower() == NO_FINDING.lower()]
        return [*absent, *(nothing[0] if nothing else ()), *([self.no_finding] if self.no_finding else ())]

    def affirmed(self) -> list[str]:
        """The classes without those that negate another one, and without that of no finding, which negates
        all of them."""
        names = {NO_FINDING.lower().removeprefix("no "), *(name.lower() for name in self.classes)}
        return [
            name for name in self.classes
            if not (name.lower().startswith("no ") and name.lower().removeprefix("no ") in names)
        ]  # fmt: skip


def own_classes(pairs: Sequence[str], path: Path | None) -> dict[str, list[str]]:
    """Classes and prompts that a person gives.

    Args:
        pairs: `NAME=PROMPT`; a name that comes again gets a further prompt.
        path: YAML file of `class: [prompt, ...]`; None for none.

    Raises:
        DataError: the file cannot be used.
        MuError: a pair of another form.
    """
    classes: dict[str, list[str]] = {}
    if path is not None:
        for name, texts in read_yaml(path, dict[str, list[str]], DataError, FORM).items():
            classes[name] = list(texts)
    for pair in pairs:
        name, equals, prompt = (part.strip() for part in pair.partition("="))
        if not (name and equals and prompt):
            raise MuError(f"--class {pair}: write it as NAME=PROMPT, such as 'Effusion=Small left effusion.'")
        classes.setdefault(name, []).append(prompt)
    empty = [name for name, texts in classes.items() if not texts]
    if path is not None and not classes:
        raise DataError(f"{path}: no class; {FORM}")
    if empty:
        raise DataError(f"{path}: class {empty[0]!r} has no prompt; {FORM}")
    return classes


def classify_files(
    trained: PretrainedRun, paths: Sequence[Path], question: Question, likeness: bool = True
) -> list[FilmAnswer]:
    """Class probabilities of the user's own files, at the temperature that the run learned.

    Args:
        paths: PNG, JPEG or DICOM; unreadable ones are reported on stderr, counted and left out.
        likeness: whether to tell how like the training films they are.

    Raises:
        CheckpointError: the run was trained without ITC.
        DataError: no file can be read, or a prompt is empty or too long.
        MuError: a single class, which no other is compared with.
    """
    need_itc(trained)
    ask = _several if question.multi_label else _one
    prompts = _offered(question)
    for texts in prompts.values():
        token_ids(trained, texts)  # a prompt that cannot be used is refused before the films are read
    found = list(answers_of(partial(_embedded, trained), trained, paths, likeness))
    image_nQE = np.stack([image_QE for _, image_QE, _ in found])
    answers = ask(trained, image_nQE, question, prompts)
    return [
        FilmAnswer(path, cells, more, seen)
        for (path, _, seen), (cells, more) in zip(found, answers, strict=True)
    ]


def _embedded(trained: PretrainedRun, files: UserImages) -> list[NDArray[np.float32]]:
    return list(embed_many_images(trained, files.image_B1HW))


def _offered(question: Question) -> dict[str, list[str]]:
    """The classes that are compared with each other; of several, those that have a probability.

    Raises:
        MuError: fewer than two; of several, none.
    """
    if question.multi_label:
        if not question.affirmed():
            raise MuError(f"{', '.join(question.classes)}: negates what is not asked for; add a class")
        return {name: list(question.classes[name]) for name in question.affirmed()}
    prompts = {name: list(texts) for name, texts in question.classes.items()}
    if question.no_finding:
        prompts.setdefault(NO_FINDING, []).append(question.no_finding)
    if len(prompts) < 2:
        raise MuError("one class alone is always the likeliest; add another, --no-finding or --multi-label")
    return prompts


Answer = tuple[Mapping[str, object], Mapping[str, Any]]
"""Columns of a table, and what JSON has."""


def _one(
    trained: PretrainedRun, image_nQE: NDArray[np.float32], question: Question, prompts: Prompts
) -> list[Answer]:
    probability_nC, scores_nC = class_probabilities(trained, image_nQE, prompts, question.over)
    answers: list[Answer] = []
    for probability_C, scores_C in zip(probability_nC, scores_nC, strict=True):
        by_class = _by_class(prompts, probability_C)
        best = max(by_class, key=by_class.__getitem__)
        least = question.threshold
        said = best if least is None or by_class[best] >= least else None
        more = {"class": said, "probabilities": by_class, "similarities": _by_class(prompts, scores_C)}
        if least is None:
            answers.append((by_class, more))
        else:
            answers.append(({**by_class, "class": said or ""}, {**more, "threshold": least}))
    return answers


def _several(
    trained: PretrainedRun, image_nQE: NDArray[np.float32], question: Question, prompts: Prompts
) -> list[Answer]:
    absent = {name: question.negations(name) for name in prompts}
    present_nC = class_scores(trained, image_nQE, prompts, question.over)
    absent_nC = class_scores(trained, image_nQE, absent, question.over)
    temperature = float(trained.model.temperature.detach())
    both_nC2 = np.stack([present_nC, absent_nC], axis=2)
    probability_nC = softmax(both_nC2.reshape(-1, 2), temperature)[:, 0].reshape(present_nC.shape)
    least = OF_SEVERAL if question.threshold is None else question.threshold
    answers: list[Answer] = []
    for probability_C, present_C, absent_C in zip(probability_nC, present_nC, absent_nC, strict=True):
        by_class = _by_class(prompts, probability_C)
        found = [name for name, value in by_class.items() if value >= least]
        more = {
            "found": found, "threshold": least, "probabilities": by_class,
            "similarities": _by_class(prompts, present_C), "negated": _by_class(prompts, absent_C),
        }  # fmt: skip
        cells = by_class if question.threshold is None else {**by_class, "found": named(found)}
        answers.append((cells, more))
    return answers


def _by_class(prompts: Prompts, values_C: NDArray[np.float32]) -> dict[str, float]:
    return {name: round(float(value), DIGITS) for name, value in zip(prompts, values_C, strict=True)}
