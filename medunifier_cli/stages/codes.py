"""Encode the images of a split to codes once, and keep them with the features of their texts in `codes.h5`.

Letters: n samples, T height and width of the top map, G of the bottom map, V texts of a sample, D width of
f_t_cls, M tokens of the longest text.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import splits_of
from medunifier_cli.data.batch import Batch, to_device
from medunifier_cli.data.loader import SplitSource, eval_batches, eval_workers
from medunifier_cli.data.subset import refuse_synthetic
from medunifier_cli.distributed import world
from medunifier_cli.errors import CheckpointError
from medunifier_cli.evaluate.benchmark import Benchmark, open_benchmark
from medunifier_cli.evaluate.retrieval.prompts import fingerprint
from medunifier_cli.model.precision import measuring
from medunifier_cli.parsing import parse_json
from medunifier_cli.recipe.schema import CACHED, PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.run.cache import UNREADABLE, check_sizes, open_hdf5, write_hdf5
from medunifier_cli.run.encoding import Batches, Rows
from medunifier_cli.run.provenance import data_facts
from medunifier_cli.stages.priors.views import section_features, section_texts, token_rows
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.terminal.say import counted, say

BATCH = 64
"""Samples per forward pass and rank; changes no code."""


@dataclass(frozen=True)
class Codes:
    """All that the priors read of a split."""

    top_nTT: NDArray[np.uint16]
    bottom_nGG: NDArray[np.uint16]
    text_nVD: NDArray[np.float16]
    """Feature f_t_cls of the whole text, then of each of its sections; an empty section has that of the
    whole."""
    label_n: NDArray[np.int16]
    """Class index, -1 for none or several."""
    key_n: NDArray[np.bytes_]
    token_nVM: NDArray[np.int32] | None = None
    """Token ids of the same texts, -1 behind a text's end, for priors that read texts token by token."""

    def __len__(self) -> int:
        return len(self.key_n)


def check_codes(pretrained: PretrainRecipe, folder: Path) -> None:
    """Check that a pre-training run has codes.

    Raises:
        CheckpointError: it was trained without TIG.
    """
    if not pretrained.objectives.tig:
        raise CheckpointError(f"{folder}: trained without TIG, so it has no codes to fit priors on")


def open_splits(recipe: PriorRecipe, trained: PretrainedRun) -> tuple[Benchmark, Benchmark | None]:
    """The train split that a recipe's priors are fitted on, and the held-out one; see `priors.splits_of`.

    Each sample has a text. None where nothing is held out.

    Raises:
        DataError: no such shards or split, synthetic images in what is held out, or neither texts nor
            prompts.
    """
    folder, train, valid = splits_of(recipe, trained.recipe)

    def opened(split: str) -> Benchmark:
        benchmark = open_benchmark(
            trained, recipe.data.dataset, split, class_texts=True, shards=str(folder),
            features=recipe.data.features,
        )  # fmt: skip
        source = benchmark.source
        return replace(benchmark, source=source.with_features(source.features, images=False))

    part = opened(train)
    if recipe.data.limit:
        part.source.rows = part.source.rows[: recipe.data.limit]
    if valid:
        refuse_synthetic(folder, valid, "data.valid")
    return part, opened(valid) if valid else None


def say_texts(train: Benchmark) -> None:
    """Say, on the main rank, where the texts come from if they are none of the data set's own."""
    source = train.source
    if source.prompted and world.is_main():
        left_out = f"; {source.excluded:,} images without exactly one class are left out"
        say(
            f"{train.shards}: no texts; each image has a prompt of its class "
            f"({', '.join(train.plugin.classes)}) in place of one{left_out if source.excluded else ''}"
        )


def made_of(recipe: PriorRecipe, trained: PretrainedRun, splits: Sequence[Benchmark]) -> dict[str, Any]:
    """All that the codes of these splits depend on, the train split first; fits JSON."""
    first = splits[0]
    facts: dict[str, Any] = {
        "checkpoint": trained.identity,
        "data": data_facts(first.shards)["manifest"],
        "choice of samples": {split.split: len(split.source) for split in splits},
        "text sections": recipe.prior.sections,
    }
    if recipe.prior.reads_tokens:
        facts["tokens of the texts"] = True
    if recipe.data.dataset:
        facts["data set"] = recipe.data.dataset
    if first.source.features is not None:
        facts["features of the image encoder"] = CACHED
    if first.source.prompted:
        facts["class prompts"] = fingerprint(next(iter(first.plugin.prompt_sets().values())))
    return facts


def encode_splits(
    trained: PretrainedRun, sources: Mapping[str, SplitSource], sections: bool, path: Path,
    made_of: Mapping[str, Any], tokens: bool = False,
) -> None:  # fmt: skip
    """Write `codes.h5` of several splits; all ranks share the work.

    Args:
        sources: samples by split, see `encode_split`.
        path: of the file.
        made_of: all that the codes depend on.
        tokens: write the token ids of the texts, too.

    Raises:
        CheckpointError: the disk is full or cannot be written to.
    """
    started = time.monotonic()
    parts = {
        split: encode_split(trained, source, sections, path.with_suffix(f".{split}"), made_of, tokens)
        for split, source in sources.items()
    }
    rows = {split: part for split, part in parts.items() if part is not None}
    if rows:  # the main rank
        write_codes(path, {split: codes_of(part.arrays()) for split, part in rows.items()}, made_of)
        for part in rows.values():
            part.remove()
        count, seconds = sum(part.total for part in rows.values()), time.monotonic() - started
        say(f"{path}: {counted(count, 'image')} encoded in {seconds:.0f} s")
    world.barrier()


def encode_split(
    trained: PretrainedRun, source: SplitSource, sections: bool, path: Path,
    made_of: Mapping[str, Any], tokens: bool = False,
) -> Rows | None:  # fmt: skip
    """Codes and text features of every sample, in order; all ranks share the work.

    Args:
        source: samples with text: the bottom codes of the paper depend on image and text.
        sections: add the feature of each section alone, so that a prior learns short texts too.
        path: the rows are kept next to this file while they are encoded; the next call resumes from them.
        made_of: all that the codes depend on.

    Returns:
        The columns of `Codes` on the main rank, None on all others.
    """
    rows = Rows(path, made_of, len(source)) if world.is_main() else None
    # the main rank alone looks at the disk: the others begin where it does
    done = torch.tensor(rows.done if rows else 0, device=trained.device)
    batches = _encode(trained, source, sections, tokens, int(world.collect_rows(done)[0]))
    if rows is not None:
        rows.fill(batches)
        return rows
    for _ in batches:
        pass
    return None


def _encode(trained: PretrainedRun, source: SplitSource, sections: bool, tokens: bool, first: int) -> Batches:
    """The columns of `Codes` by name, from a sample on, whole on every rank."""
    with Progress(len(source), "sample", first=first, hidden=not world.is_main()) as progress:
        done = first
        workers = eval_workers(source.data.workers, -(-(len(source) - first) // (BATCH * world.size())))
        for batch, mask_B in eval_batches(
            source, batch_size=BATCH, rank=world.rank(), world=world.size(), workers=workers, first=first
        ):
            with measuring():
                columns = _columns_of(trained, source, sections, to_device(batch, trained.device))
            real = _ranks(mask_B.to(trained.device)).bool().cpu()
            top, bottom, text, label, number, *token = (
                _ranks(column.to(trained.device)).cpu()[real].numpy()
                for column in columns[: len(columns) if tokens else -1]
            )
            yield {
                "top": top.astype(np.uint16),
                "bottom": bottom.astype(np.uint16),
                "text": text.astype(np.float16),
                "label": label.astype(np.int16),
                "key": np.array([key.encode() for key in source.shards.keys(source.rows[number])]),
                **({"token": token[0]} if tokens else {}),
            }
            done += len(number)
            progress.advance(done)


def _columns_of(
    trained: PretrainedRun, source: SplitSource, sections: bool, batch: Batch
) -> tuple[Tensor, ...]:
    """Top and bottom codes, text features, labels, positions and token ids of this rank's batch."""
    memory = trained.model.encode(batch.image_or_feature)
    text_BD = trained.model.encode_text(batch.text)
    top, bottom = trained.model.generator.encode(memory.query_BQD, memory.patch_BVD, text_BD)
    views = section_texts(trained, source, batch.position_B.tolist()) if sections else []
    feature_BVD = torch.stack([text_BD.float(), *section_features(trained, views, text_BD)], 1)
    token_BVM = token_rows(batch.text, views, trained.recipe.text.max_tokens)
    return top.code_BHW, bottom.code_BHW, feature_BVD, batch.label_B, batch.position_B, token_BVM


def codes_of(columns: Mapping[str, NDArray[Any]]) -> Codes:
    """Columns by the names they have in the file -> codes."""
    names = {field.name.split("_")[0]: field.name for field in fields(Codes)}
    return Codes(**{names[name]: column for name, column in columns.items()})


def _ranks(rows: Tensor) -> Tensor:
    """[B, ...] of each rank -> [ranks * B, ...], rank after rank, which is the order of the samples."""
    return torch.cat(world.collect_rows(rows))


def write_codes(path: Path, splits: Mapping[str, Codes], made_of: Mapping[str, Any]) -> None:
    """Write `codes.h5` atomically, with a group for each split.

    Args:
        made_of: all that the codes depend on (checkpoint, data, options), as JSON; `read_codes` compares it.
    """

    def fill(file: h5py.File) -> None:
        for split, codes in splits.items():
            group = file.create_group(split)
            for name, column in _columns(codes).items():
                group.create_dataset(name, data=column)
            group.attrs["sha256"] = split_hash(codes)

    write_hdf5(path, made_of, fill, CheckpointError)


def read_codes(path: Path, splits: tuple[str, ...], made_of: Mapping[str, Any]) -> dict[str, Codes]:
    """Read and verify `codes.h5`.

    Raises:
        CheckpointError: damaged, or made from another checkpoint, other data or other options.
    """
    again = "delete it and run `mu fit-prior` again"
    try:
        with open_hdf5(path) as file:
            written = parse_json(file.attrs["made_of"], dict[str, Any], str(path), CheckpointError, again)
            for name, value in made_of.items():
                if written.get(name) != value:
                    raise CheckpointError(
                        f"{path}: made from another {name} ({written.get(name)}, now {value}); start over "
                        "with --fresh, or give this run another name with --name"
                    )
            result = {}
            for split in splits:
                group = file[split]
                check_sizes(group, path.stat().st_size)
                codes = codes_of({name: group[name][:] for name in group})
                if group.attrs["sha256"] != split_hash(codes):
                    raise CheckpointError(f"{path}: the codes of {split} were changed since; {again}")
                result[split] = codes
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: damaged or incomplete; {again}") from error
    return result


def split_hash(codes: Codes) -> str:
    """SHA-256 of all columns with their names, types and shapes, as 64 hex digits."""
    digest = hashlib.sha256()
    for name, column in _columns(codes).items():
        digest.update(f"{name} {column.dtype} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _columns(codes: Codes) -> dict[str, NDArray[Any]]:
    columns = {field.name.split("_")[0]: getattr(codes, field.name) for field in fields(Codes)}
    return {name: column for name, column in columns.items() if column is not None}
