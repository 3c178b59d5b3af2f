"""Write radiology reports from images with the ITG head of a pre-trained run.

B images of a batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.data.texts.report import compose, digest, readable, sections_of
from medunifier_cli.errors import CheckpointError, MuError
from medunifier_cli.evaluate.benchmark import evaluation_batches
from medunifier_cli.evaluate.reports.decoding import Constraints, DecodedText, beam_search, greedy, nucleus
from medunifier_cli.evaluate.reports.text_cache import TextCache
from medunifier_cli.evaluate.shared.sharing import in_order
from medunifier_cli.evaluate.user_images import UserImages, of_files
from medunifier_cli.files import make_folder, must_exist, write_text
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.sampling import Draws
from medunifier_cli.terminal.progress import Progress

BATCH = 32
"""Images per batch."""
How = Literal["greedy", "beam", "nucleus"]


@dataclass(frozen=True)
class Decoding:
    """The decoding settings of reports: apart from the model, they alone decide the words."""

    how: How = "beam"
    beams: int = 3
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    seed: int = 0
    min_tokens: int = 0
    max_tokens: int = 0
    """Maximum length of a report; 0 for the length that the run was trained on."""
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def describe(self) -> str:
        """The settings in one phrase, for the protocol of a result."""
        methods = {
            "greedy": "greedy",
            "beam": f"{self.beams} beams, length penalty {self.length_penalty:g}",
            "nucleus": (
                f"nucleus, temperature {self.temperature:g}, top p {self.top_p:g}"
                + (f", top k {self.top_k}" if self.top_k else "")
            ),
        }
        limits = [f"at least {self.min_tokens} tokens"] if self.min_tokens else []
        limits += [f"at most {self.max_tokens} tokens"] if self.max_tokens else []
        if self.repetition_penalty != 1:
            limits.append(f"repetition penalty {self.repetition_penalty:g}")
        if self.no_repeat_ngram:
            limits.append(f"no {self.no_repeat_ngram}-gram twice")
        return ", ".join([methods[self.how], *limits])


@dataclass(frozen=True)
class GeneratedReport:
    """One generated report."""

    text: str
    """Without section marks."""
    sections: dict[str, str]
    """Section -> text; empty if the run was trained without `text.section_marks`."""
    ended: bool
    """False if it was cut at the maximum length."""
    tokens: tuple[int, ...] = field(default=(), repr=False)
    """Ids of its tokens, without [DEC] and [SEP]."""

    def __str__(self) -> str:
        return self.text


class Writer:
    """Writes reports with one model and one decoding method.

    Args:
        trained: a run with ITG.
        sections: names of the text's sections, in the order of training.

    Raises:
        CheckpointError: the run was trained without ITG.
        MuError: a length the run was not trained on, or another value out of range.
    """

    def __init__(self, trained: PretrainedRun, decoding: Decoding, sections: Sequence[str]) -> None:
        if not trained.recipe.objectives.itg:
            raise CheckpointError(f"{trained.run.folder}: trained without ITG, it cannot write reports")
        if decoding.how not in get_args(How):
            raise MuError(f"reports are written by {', '.join(get_args(How))}, not by {decoding.how!r}")
        self.trained, self.decoding, self.sections = trained, decoding, tuple(sections)
        tokenizer = trained.tokenizer
        trained_length = trained.recipe.text.max_tokens - 2  # [CLS] and [SEP] took two positions in training
        if decoding.max_tokens > trained_length:
            raise MuError(
                f"--max-tokens {decoding.max_tokens}: the run was trained on at most {trained_length} tokens "
                "(text.max_tokens minus the two special ones)"
            )
        max_tokens = decoding.max_tokens or trained_length
        if decoding.min_tokens > max_tokens:
            raise MuError(
                f"--min-tokens {decoding.min_tokens} is above the maximum length, {max_tokens} tokens"
            )
        self.constraints = Constraints(
            tokenizer.dec_id, tokenizer.sep_id, max_tokens + 1, decoding.min_tokens,
            tokenizer.unwritten, decoding.repetition_penalty, decoding.no_repeat_ngram,
        )  # fmt: skip
        self.constraints.check()

    @torch.inference_mode()
    def write(self, image_or_feature: Tensor, keys: Sequence[str]) -> list[GeneratedReport]:
        """Reports of B images.

        Args:
            image_or_feature: uint8 grey levels [B, 1, H, W], or cached features of the image encoder.
            keys: B names; with the seed, they decide what nucleus sampling gives.
        """
        with measuring():
            return self._write(image_or_feature.to(self.trained.device), keys)

    def write_many(self, image_n1HW: Tensor, keys: Sequence[str]) -> list[GeneratedReport]:
        """Reports of any number of images, uint8 grey levels; `keys` as in `write`."""
        return [
            report
            for start in range(0, len(keys), BATCH)
            for report in self.write(image_n1HW[start : start + BATCH], keys[start : start + BATCH])
        ]

    def _write(self, image_or_feature: Tensor, keys: Sequence[str]) -> list[GeneratedReport]:
        model, settings, constraints = self.trained.model, self.decoding, self.constraints
        memory = model.encode(image_or_feature)
        cache = TextCache(model, memory, constraints.max_tokens)
        device, count = self.trained.device, len(keys)
        if settings.how == "greedy":
            texts = greedy(cache.step, count, constraints, device)
        elif settings.how == "beam":
            beams, penalty = settings.beams, settings.length_penalty
            texts = beam_search(cache.step, count, constraints, beams, device, penalty)
        else:
            draws = Draws(settings.seed, settings.temperature, settings.top_k, settings.top_p)
            texts = nucleus(cache.step, [digest(key) for key in keys], constraints, draws, device)
        return [self._report(text) for text in texts]

    def _report(self, decoded: DecodedText) -> GeneratedReport:
        text = self.trained.tokenizer.decode(decoded.tokens)
        if not self.trained.recipe.text.section_marks:
            return GeneratedReport(readable(text), {}, decoded.ended, tuple(decoded.tokens))
        parts = {name: readable(part) for name, part in sections_of(text, self.sections).items()}
        return GeneratedReport(" ".join(parts.values()), parts, decoded.ended, tuple(decoded.tokens))


def write_split(
    writer: Writer, source: SplitSource, dataset: str, limit: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """Generate reports for the samples of a split that have text, next to the radiologists' reports.

    Args:
        limit: use only the first `limit` samples; 0 for all.

    Returns:
        Rows of the reports file, in the order of the split: `key`, `dataset`, `subject`, `reference` (whole
        text, uncut), `hypothesis`, and for a run with section marks both by section; and the number of
        hypotheses that were cut at the maximum length.
    """
    total = min(limit or len(source), len(source))
    rows: list[dict[str, Any]] = []
    cut = 0
    source = source.with_features(source.features, images=False)
    with (
        Progress(total, "report") as progress,
        closing(in_order(partial(_reports, writer, source, dataset, total))) as parts,
    ):
        for some, cut_here in parts:
            rows += some
            cut += cut_here
            progress.advance(len(rows))
    return rows, cut


def write_first(writer: Writer, source: SplitSource, dataset: str, count: int) -> list[dict[str, Any]]:
    """Rows as `write_split` gives, of the first `count` samples that have text; on this rank alone."""
    source = source.with_features(source.features, images=False)
    total = min(count, len(source))
    with closing(_reports(writer, source, dataset, total, rank=0, ranks=1)) as parts:
        return [row for part in parts if part is not None for row in part[0]]


def _reports(
    writer: Writer, source: SplitSource, dataset: str, total: int, rank: int, ranks: int
) -> Generator[tuple[list[dict[str, Any]], int] | None, None, None]:
    """One rank's share of the reports: rows, and how many of them were cut, a batch at a time."""
    size = writer.trained.batch_size or BATCH
    for batch, mask_B in evaluation_batches(source, size, -(-total // size), rank=rank, ranks=ranks):
        count = int((mask_B & (batch.position_B < total)).sum())
        if not count:
            yield None
            continue
        reports = writer.write(batch.image_or_feature[:count], batch.keys[:count])
        rows = [
            {"key": key, "dataset": dataset} | _row(source, number, report)
            for number, key, report in zip(batch.position_B.tolist(), batch.keys, reports, strict=False)
        ]
        yield rows, sum(not report.ended for report in reports)


def write_files(writer: Writer, paths: Sequence[Path]) -> Iterator[tuple[Path, GeneratedReport | str]]:
    """Reports of image files, or why a file has none, in the order of the files.

    Raises:
        DataError: none can be read.
    """
    trained, done = writer.trained, 0
    size, batch = trained.recipe.data.image_size, trained.batch_size or BATCH
    with Progress(len(paths), "file", hidden=sys.stdout.isatty()) as progress:
        for files, reports in of_files(partial(_reports_of_files, writer), paths, size, batch):
            written = iter(reports)
            for path in paths[done : done + batch]:
                yield path, files.skipped[path] if path in files.skipped else next(written)
            done = min(done + batch, len(paths))
            progress.advance(done)


def _reports_of_files(writer: Writer, files: UserImages) -> list[GeneratedReport]:
    return writer.write(files.image_B1HW, [path.name for path in files.paths]) if files.paths else []


def files_under(paths: Sequence[Path]) -> list[Path]:
    """The files themselves, and all files below the folders except hidden ones, sorted by name.

    Raises:
        MuError: a path that does not exist, or a folder without a file.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            must_exist([path])
            files.append(path)
            continue
        below = sorted(file for file in path.rglob("*") if file.is_file())
        below = [file for file in below if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        if not below:
            raise MuError(f"{path}: no file in this folder")
        files += below
    return files


def whole_text(source: SplitSource, number: int) -> str:
    """A sample's text as radiologists wrote it: uncut, without section marks."""
    raw, settings = source.meta(number).get("sections") or {}, source.text_recipe
    return compose(raw, source.sections, source.data.require, settings.strip_deidentified)


def save_rows(rows: Sequence[dict[str, Any]], path: Path, texts_of: Path | None = None) -> None:
    """Write one JSON line per report; `texts_of` are the data of the references, see `files.atomic_write`."""
    make_folder(path.parent)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), texts_of=texts_of)


def _row(source: SplitSource, number: int, report: GeneratedReport) -> dict[str, Any]:
    meta, settings = source.meta(number), source.text_recipe
    raw = meta.get("sections") or {}
    row = {
        "subject": str(meta.get("subject") or ""),
        "reference": whole_text(source, number),
        "hypothesis": report.text,
    }
    if not settings.section_marks:
        return row
    truth = {name: compose(raw, (name,), "any", settings.strip_deidentified) for name in source.sections}
    return row | {
        "reference_sections": {name: text for name, text in truth.items() if text},
        "hypothesis_sections": report.sections,
    }
