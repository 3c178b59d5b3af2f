"""Radiology reports from images: the ITG head of a pre-trained run writes after the queries.

B images of a batch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.loader import SplitSource, eval_batches
from medunifier_cli.data.texts.report import compose, digest, readable, sections_of
from medunifier_cli.errors import CheckpointError, MuError
from medunifier_cli.evaluate.reports.decoding import Found, Rules, beam_search, greedy, nucleus
from medunifier_cli.evaluate.reports.text_cache import TextCache
from medunifier_cli.evaluate.user_images import read_batches
from medunifier_cli.files import write_text
from medunifier_cli.model.sampling import Draws
from medunifier_cli.model.vit import pixels
from medunifier_cli.terminal.progress import Progress

BATCH = 32
"""Images written about at once."""
How = Literal["greedy", "beam", "nucleus"]


@dataclass(frozen=True)
class Decoding:
    """How reports are written; everything that decides their words beside the model."""

    how: How = "beam"
    beams: int = 3
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.9
    seed: int = 0
    min_tokens: int = 0
    max_tokens: int = 0
    """Most tokens of a report; 0 for as many as the run was trained on."""
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def said(self) -> str:
        """In one phrase, for the protocol of a result."""
        ways = {
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
        return ", ".join([ways[self.how], *limits])


@dataclass(frozen=True)
class Report:
    """One generated report."""

    text: str
    """Without section marks."""
    sections: dict[str, str]
    """Section -> text; empty where the run was trained without `text.section_marks`."""
    ended: bool
    """False where it was cut at the longest length."""


class Writer:
    """Writes reports with one model and one way of decoding.

    Args:
        trained: a run with ITG.
        sections: names of the text's sections, in the order it was trained on.

    Raises:
        CheckpointError: the run was trained without ITG.
        MuError: a length the run was not trained on, or another value out of range.
    """

    def __init__(self, trained: PretrainedRun, decoding: Decoding, sections: Sequence[str]) -> None:
        if not trained.recipe.objectives.itg:
            raise CheckpointError(f"{trained.run.folder}: trained without ITG, it cannot write reports")
        self.trained, self.decoding, self.sections = trained, decoding, tuple(sections)
        tokenizer = trained.tokenizer
        most = trained.recipe.text.max_tokens - 2  # [CLS] and [SEP] took two places in training
        if decoding.max_tokens > most:
            raise MuError(
                f"--max-tokens {decoding.max_tokens}: the run was trained on at most {most} tokens "
                "(text.max_tokens less the two special ones)"
            )
        longest = decoding.max_tokens or most
        if decoding.min_tokens > longest:
            raise MuError(f"--min-tokens {decoding.min_tokens} is above the longest report, {longest} tokens")
        self.rules = Rules(
            tokenizer.dec_id, tokenizer.sep_id, longest + 1, decoding.min_tokens,
            tokenizer.unwritten, decoding.repetition_penalty, decoding.no_repeat_ngram,
        )  # fmt: skip
        self.rules.check()

    @torch.inference_mode()
    def write(self, image_B1HW: Tensor, keys: Sequence[str]) -> list[Report]:
        """Reports of B images.

        Args:
            image_B1HW: uint8 grey levels.
            keys: B names; with the seed, they decide what is drawn.
        """
        model, how = self.trained.model, self.decoding
        memory = model.encode_image(pixels(image_B1HW.to(self.trained.device)))
        cache = TextCache(model, memory, self.rules.longest)
        device, count = self.trained.device, len(keys)
        if how.how == "greedy":
            found = greedy(cache.step, count, self.rules, device)
        elif how.how == "beam":
            found = beam_search(cache.step, count, self.rules, how.beams, device, how.length_penalty)
        else:
            draws = Draws(how.seed, how.temperature, how.top_k, how.top_p)
            found = nucleus(cache.step, [digest(key) for key in keys], self.rules, draws, device)
        return [self._report(one) for one in found]

    def _report(self, found: Found) -> Report:
        text = self.trained.tokenizer.decode(found.tokens)
        if not self.trained.recipe.text.section_marks:
            return Report(readable(text), {}, found.ended)
        parts = {name: readable(part) for name, part in sections_of(text, self.sections).items()}
        return Report(" ".join(parts.values()), parts, found.ended)


def write_split(
    writer: Writer, source: SplitSource, dataset: str, limit: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """Reports of a split's samples that have text, beside the radiologists'.

    Args:
        limit: only the first so many; 0 for all.

    Returns:
        Rows of the reports file, in the order of the split: `key`, `dataset`, `subject`, `reference` (whole
        text, uncut), `hypothesis`, and for a run with section marks both by section; and how many of the
        hypotheses were cut at the longest length.
    """
    total = min(limit or len(source), len(source))
    rows: list[dict[str, Any]] = []
    cut = 0
    batches = eval_batches(source, batch_size=BATCH, rank=0, world=1, workers=0, batches=-(-total // BATCH))
    with Progress(total, "report") as progress:
        for batch, _ in batches:
            count = min(BATCH, total - len(rows))
            reports = writer.write(batch.image_B1HW[:count], batch.keys[:count])
            for place, key, report in zip(batch.position_B.tolist(), batch.keys, reports, strict=False):
                rows.append({"key": key, "dataset": dataset} | _beside(source, place, report))
                cut += not report.ended
            progress.advance(len(rows))
    return rows, cut


def write_files(writer: Writer, paths: Sequence[Path]) -> Iterator[tuple[Path, Report | str]]:
    """Reports of image files, or why there is none; those that cannot be read come last of their batch.

    Raises:
        DataError: none can be read.
    """
    with Progress(len(paths), "file", hidden=sys.stdout.isatty()) as progress:
        done = 0
        for files in read_batches(paths, writer.trained.recipe.data.image_size, BATCH):
            if files.paths:
                reports = writer.write(files.image_B1HW, [path.name for path in files.paths])
                yield from zip(files.paths, reports, strict=True)
            yield from files.skipped.items()
            done += len(files.paths) + len(files.skipped)
            progress.advance(done)


def files_under(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as all files below them, hidden ones aside; by name.

    Raises:
        MuError: a path that does not exist, or a folder without a file.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            if not path.exists():
                raise MuError(f"{path}: no such file")
            found.append(path)
            continue
        below = sorted(file for file in path.rglob("*") if file.is_file())
        below = [file for file in below if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        if not below:
            raise MuError(f"{path}: no file in this folder")
        found += below
    return found


def whole_text(source: SplitSource, place: int) -> str:
    """A sample's text as radiologists wrote it: uncut, without section marks."""
    raw, settings = source.meta(place).get("sections") or {}, source.text_recipe
    return compose(raw, source.sections, source.data.require, settings.strip_deidentified)


def save_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON line a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _beside(source: SplitSource, place: int, report: Report) -> dict[str, Any]:
    meta, settings = source.meta(place), source.text_recipe
    raw = meta.get("sections") or {}
    row = {
        "subject": str(meta.get("subject") or ""),
        "reference": whole_text(source, place),
        "hypothesis": report.text,
    }
    if not settings.section_marks:
        return row
    truth = {name: compose(raw, (name,), "any", settings.strip_deidentified) for name in source.sections}
    return row | {
        "reference_sections": {name: text for name, text in truth.items() if text},
        "hypothesis_sections": report.sections,
    }
