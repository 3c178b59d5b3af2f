"""The work of `mu prepare`: raw download -> shards, index, rejects, contact sheets, manifest.

The unit of work is a shard: it is written completely or not at all and leaves a receipt. A restart, or
another part of a job array, resumes from the receipts. The manifest is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from medunifier_cli.data.contract import DatasetPlugin, DrawnImage, Drop, Plan, Record
from medunifier_cli.data.disk.manifest import MANIFEST
from medunifier_cli.data.images.image import head_of, is_dicom, opened
from medunifier_cli.errors import DataError
from medunifier_cli.files import create_file, explained
from medunifier_cli.prepare.dataset_scan import Chunk, DatasetScan, in_plugin, records_of
from medunifier_cli.prepare.folder import (
    DROPS,
    RECEIPTS,
    check_settings,
    join_lock,
    locked,
    make_receipts_folder,
)
from medunifier_cli.prepare.join import join
from medunifier_cli.prepare.manifest import made_with, tally
from medunifier_cli.prepare.render import TASK, Reject, RenderedSample, render_all
from medunifier_cli.prepare.summary import planned_rows
from medunifier_cli.prepare.write import (
    Receipt,
    ShardWriter,
    is_intact,
    is_of_these_images,
    load_receipt,
)
from medunifier_cli.temporary import temporary_name
from medunifier_cli.terminal.progress import Progress

PROBED = 32
"""Number of images, from the first on, whose compression is checked before any is decoded."""


@dataclass(frozen=True)
class Job:
    """One call of `mu prepare`."""

    plugin: DatasetPlugin
    raw: Path
    out: Path
    options: Mapping[str, Any]
    """A value for each of the plugin's options."""
    size: int = 224
    """Edge of the images, in pixels."""
    form: str = "png"
    """Image format in the shards, `png` or `jpg`."""
    shard_size: int = 2000
    """Records per shard."""
    workers: int = 1
    """Decoding processes."""
    part: tuple[int, int] = (1, 1)
    """(I, N): this call makes every N-th shard, from the I-th on."""
    max_rejects: int | None = None
    """Stop when more images than this are rejected."""
    name: str = ""
    """Name of the prepared data set; empty for the plugin's."""

    def settings(self) -> dict[str, Any]:
        """Everything in the job that the contents of the shards depend on."""
        return {
            "dataset": self.name or self.plugin.name,
            **({"plugin": self.plugin.name} if self.name else {}),
            "options": dict(self.options),
            "image": {"size": self.size, "format": self.form},
            "shard_size": self.shard_size,
        }


def prepare(job: Job) -> dict[str, Any] | None:
    """Do the work of one call, with progress and warnings on stderr.

    Returns:
        The manifest; None while other parts still have shards to make.

    Raises:
        DataError: unusable raw data, a patient in two splits, settings other than those the folder was
            started with, too many rejects, a full disk.
    """
    plan, progress = _plan(job)
    make_receipts_folder(job.out, job.raw if job.plugin.needs_raw else None)
    with locked(job.out, job.part):
        defaults = {name: option.default for name, option in job.plugin.options.items()}
        check_settings(job.out, job.part, {**job.settings(), "made_with": made_with()}, defaults)
        with _drops_file(job) as drops, progress:
            call = _Call(job, plan, progress, drops)
            call.write_shards()
        receipts = [load_receipt(job.out, chunk.name, chunk.fingerprint) for chunk in call.planned]
        if None in receipts:
            finished = sum(receipt is not None for receipt in receipts)
            progress.say(
                f"part {job.part[0]}/{job.part[1]} is done; {finished} of {len(receipts)} shards exist, and "
                "the part that makes the last one writes the manifest"
            )
            return None
        with join_lock(job.out):
            shards = [receipt for receipt in receipts if receipt is not None]
            manifest = join(job.out, shards, call.scan, plan, job.plugin, job.settings())
    _warn(progress, manifest["warnings"][len(plan.warnings) :])
    return manifest


def planned(job: Job) -> list[list[object]]:
    """What `prepare` would write, as rows under a header; reads the tables of the raw data and no image.

    Raises:
        DataError: unusable raw data, or a patient in two splits.
    """
    plan, _ = _plan(job)
    scan = _scan(job, plan, lambda _: None)
    return planned_rows(scan.chunks(records_of(job.plugin, plan.records)), scan.drops)


def _plan(job: Job) -> tuple[Plan, Progress]:
    """What the plugin finds, with its notes and warnings said."""
    _check_folders(job)
    _check_seed(job.options.get("seed", 0))
    with in_plugin(job.plugin):
        plan = job.plugin.plan(job.raw, job.options)
    progress = Progress(plan.total, "row", rate_unit="images")
    for line in plan.notes:
        progress.say(line)
    _warn(progress, plan.warnings)
    return plan, progress


def _scan(job: Job, plan: Plan, on_drop: Callable[[Drop], None]) -> DatasetScan:
    plugin = job.plugin
    shared = plan.allow_shared_subjects or plugin.allow_shared_subjects
    splits, classes = plan.splits or plugin.splits, plan.classes or plugin.classes
    return DatasetScan(job.shard_size, shared, on_drop, splits, classes)


def _warn(progress: Progress, lines: Sequence[str]) -> None:
    for line in lines:
        progress.say(f"warning: {line}")


class _Call:
    """Scans the plan and writes those shards of this part that do not exist yet.

    Attributes:
        scan: the scan of the plan.
        planned: every shard of the plan so far, of all parts; without its records, to save memory.
        rejects: images that could not be used, in new shards and in finished ones, by reason.
    """

    def __init__(self, job: Job, plan: Plan, progress: Progress, drops: IO[bytes]) -> None:
        self.job, self.plan, self.progress, self.drops = job, plan, progress, drops
        self.scan = _scan(job, plan, self._note_drop)
        self.planned: list[Chunk] = []
        self.rejects: Counter[str] = Counter()
        self._decoders_checked = False
        progress.note = "0 rejected"

    def write_shards(self) -> None:
        """Make the shards.

        Raises:
            DataError: see `prepare`.
        """
        writer: ShardWriter | None = None
        job = self.job
        try:
            with contextlib.closing(render_all(self._tasks(), job.size, job.form, job.workers)) as results:
                for (chunk, last), rendered in results:
                    if writer is None:
                        writer = ShardWriter(job.out, chunk, job.form)
                    self._add(writer, rendered)
                    if last:
                        kept = {row.key for row in writer.rows}
                        samples = (record for record in chunk.records if record.key in kept)
                        sections = self.plan.text_sections or job.plugin.text_sections
                        writer.finish(tally(samples, sections))
                        writer = None
        finally:
            if writer is not None:
                writer.abandon()

    def _add(self, writer: ShardWriter, rendered: Sequence[RenderedSample | Reject]) -> None:
        for one in rendered:
            writer.add(one)
            if isinstance(one, Reject):
                self._count_reject(one.reason, one.source)
        self.progress.advance(self.progress.done + len(rendered))

    def _tasks(self) -> Iterator[tuple[tuple[Chunk, bool], list[Record]]]:
        """((chunk, whether these are its last records), records) of every shard that has to be made."""
        job = self.job
        number, parts = job.part
        for chunk in self.scan.chunks(records_of(job.plugin, self.plan.records)):
            self.planned.append(replace(chunk, records=()))
            of_this_part = chunk.ordinal % parts == number - 1
            receipt = self._finished(chunk) if of_this_part else None
            finished = receipt is not None and is_of_these_images(receipt, chunk)
            if finished and receipt:
                for reject in receipt.rejects:
                    self._count_reject(reject.reason, reject.source)
            if finished or not of_this_part:
                self.progress.skip(len(chunk.records))
                continue
            if not self._decoders_checked:
                _check_decoders(chunk)
                self._decoders_checked = True
            # Deleted before the first shard changes: until the end it would describe files of before.
            (job.out / MANIFEST).unlink(missing_ok=True)
            for start in range(0, len(chunk.records), TASK):
                records = list(chunk.records[start : start + TASK])
                yield (chunk, start + TASK >= len(chunk.records)), records

    def _finished(self, chunk: Chunk) -> Receipt | None:
        """The receipt of a shard that need not be made again; its contents are compared with their hash.

        Reading takes a hundredth of the time of making, and a damaged shard would otherwise stay damaged.
        """
        receipt = load_receipt(self.job.out, chunk.name, chunk.fingerprint)
        if receipt is None or is_intact(self.job.out, receipt):
            return receipt
        self.progress.say(f"{self.job.out / receipt.file}: its contents have changed; it is made again")
        return None

    def _count_reject(self, reason: str, source: str) -> None:
        job = self.job
        self.rejects[reason] += 1
        total = self.rejects.total()
        self.progress.note = f"{total:,} rejected"
        if job.max_rejects is not None and total > job.max_rejects:
            counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.rejects.items()))
            raise DataError(
                f"{job.raw}: {counts}, more than --max-rejects {job.max_rejects}; the last one is {source}"
            )

    def _note_drop(self, drop: Drop) -> None:
        with explained(self.job.out / RECEIPTS / DROPS):
            line = json.dumps({"source": drop.source, "reason": drop.reason}, ensure_ascii=False)
            self.drops.write(line.encode(errors="replace") + b"\n")
        # A missing file is a fault of the download, like an image that cannot be decoded; other drops are
        # the plugin's intention.
        if drop.reason.startswith("missing"):
            self._count_reject(drop.reason, drop.source)
        self.progress.skip(1)


def _check_decoders(chunk: Chunk) -> None:
    """Report a missing decoder before hours of work, not after them.

    Raises:
        DataError: one of the first images is a DICOM with a compression that nothing installed decodes.
    """
    for record in chunk.records[:PROBED]:
        if not isinstance(record.image, DrawnImage) and is_dicom(head_of(record.image)):
            from medunifier_cli.data.images.dicom import missing_decoder

            with opened(record.image) as file:
                problem = missing_decoder(file)
            if problem:
                raise DataError(f"{record.source}: {problem}")


def _check_folders(job: Job) -> None:
    raw, out = job.raw, job.out
    if not job.plugin.needs_raw:
        return
    form = job.plugin.raw_form
    if form != "folder" and not raw.is_dir():
        # a file, or a pattern of several: the plugin says what is wrong with it
        if form == "file" and not raw.exists():
            raise DataError(f"{raw}: no such file; give --raw FILE. Needed: {job.plugin.needs}")
        return
    listed = f"`mu prepare {job.plugin.name} --list` says which files are needed"
    advice = f"give --raw FOLDER, or put it there; {listed}"
    if not raw.is_dir():
        raise DataError(f"{raw}: no such folder with the raw data; {advice}")
    with os.scandir(raw) as entries:
        if not any(entries):
            raise DataError(f"{raw} is empty; {advice}")
    if out.resolve() == raw.resolve() or raw.resolve() in out.resolve().parents:
        raise DataError(f"{out}: is inside the raw folder, which is never written to; choose another --out")


def _check_seed(seed: Any) -> None:
    if not 0 <= seed < 2**32:
        raise DataError(f"-o seed={seed}: a seed is a number from 0 to {2**32 - 1}")


@contextlib.contextmanager
def _drops_file(job: Job) -> Iterator[IO[bytes]]:
    """The file of the plugin's drops. Every part writes the same one, so it does not matter which is last."""
    final = job.out / RECEIPTS / DROPS
    path = temporary_name(final)
    try:
        with explained(final):
            file = create_file(path)
        try:
            yield file
        finally:
            with explained(final):
                file.close()
        os.replace(path, final)
    finally:
        path.unlink(missing_ok=True)
