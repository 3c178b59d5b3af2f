"""`mu prepare`: raw download -> shards, index, rejects, contact sheets, manifest.

A shard is the unit of everything: it is written whole or not at all, leaves a receipt, and a restart or
another part of a job array goes on from the receipts. The manifest comes last.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from medunifier_cli.data.contract import DatasetPlugin, DrawnImage, Drop, Plan, Record
from medunifier_cli.data.images.image import bytes_of, head_of, is_dicom, opened
from medunifier_cli.data.shards import MANIFEST
from medunifier_cli.errors import DataError
from medunifier_cli.files import TEMPORARY, explained, write_json
from medunifier_cli.prepare.join import DROPS, Expected, join, summaries
from medunifier_cli.prepare.manifest import made_with, tally
from medunifier_cli.prepare.progress import PrepareProgress
from medunifier_cli.prepare.render import TASK, Reject, render_all
from medunifier_cli.prepare.walk import Chunk, Walk
from medunifier_cli.prepare.write import RECEIPTS, Receipt, ShardWriter, load_receipt

SETTINGS = "settings.json"
PROBED = 32
"""First images whose compression is looked at before anything is decoded."""


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
    shard_size: int = 2000
    """Records per shard."""
    workers: int = 1
    part: tuple[int, int] = (1, 1)
    """I of N: this call makes every N-th shard, from the I-th on."""
    max_rejects: int | None = None
    """Stop when more images than this are rejected."""

    def settings(self) -> dict[str, Any]:
        """What decides the shards' contents."""
        return {
            "dataset": self.plugin.name,
            "options": dict(self.options),
            "image": {"size": self.size, "format": self.form},
            "shard_size": self.shard_size,
        }


@dataclass
class _State:
    """What a call has seen so far."""

    progress: PrepareProgress
    probed: bool = False
    """Whether the first images were looked at."""
    expected: list[Expected] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)


def prepare(job: Job, progress: PrepareProgress) -> dict[str, Any] | None:
    """Do the work of one call.

    Returns:
        The manifest; None when other parts have shards to make yet.

    Raises:
        DataError: unusable raw data, a leaking split, other settings than those the folder was begun with,
            too many rejects, a full disk.
    """
    _check_folders(job)
    plan = job.plugin.plan(job.raw, job.options)
    progress.say_warnings(plan.warnings)
    with explained(job.out / RECEIPTS):
        (job.out / RECEIPTS).mkdir(parents=True, exist_ok=True)
    with _locked(job.out, job.part):
        _check_settings(job)
        state = _State(progress)
        with _drops_file(job) as drops:
            shared = plan.allow_shared_subjects or job.plugin.allow_shared_subjects
            walk = Walk(job.shard_size, shared, lambda drop: _note_drop(job, state, drops, drop))
            with progress.running(plan.total):
                _write_shards(job, plan, walk, state)
        found = summaries(job.out, state.expected)
        if None in found:
            there = sum(summary is not None for summary in found)
            progress.say(
                f"part {job.part[0]}/{job.part[1]} is done; {there} of {len(found)} shards are there, "
                "the part that makes the last one writes the manifest"
            )
            return None
        with _join_lock(job.out):
            shards = [summary for summary in found if summary is not None]
            manifest = join(job.out, shards, walk, plan, job.plugin, job.settings())
    progress.say_warnings(manifest["warnings"][len(plan.warnings) :])
    return manifest


def _write_shards(job: Job, plan: Plan, walk: Walk, state: _State) -> None:
    """Make the shards of this part that are not there yet."""
    writer: ShardWriter | None = None
    try:
        tasks = _tasks(job, plan, walk, state)
        with contextlib.closing(render_all(tasks, job.size, job.form, job.workers)) as rendered:
            for (chunk, last), answers in rendered:
                if writer is None:
                    writer = ShardWriter(job.out, chunk, job.form)
                for answer in answers:
                    writer.add(answer)
                    if isinstance(answer, Reject):
                        _count_reject(job, state, answer.reason, answer.source)
                state.progress.done(len(answers), sum(state.rejects.values()))
                if last:
                    kept = {row.key for row in writer.rows}
                    samples = (record for record in chunk.records if record.key in kept)
                    writer.finish(tally(samples, job.plugin.text_sections))
                    writer = None
    finally:
        if writer is not None:
            writer.abandon()


def _tasks(
    job: Job, plan: Plan, walk: Walk, state: _State
) -> Iterator[tuple[tuple[Chunk, bool], list[Record]]]:
    """(chunk, whether these are its last records), records: of every shard still to be made."""
    number, parts = job.part
    for chunk in walk.chunks(plan.records):
        state.expected.append(Expected(chunk.name, chunk.split, chunk.fingerprint))
        mine = chunk.ordinal % parts == number - 1
        receipt = load_receipt(job.out, chunk.name, chunk.fingerprint) if mine else None
        finished = receipt is not None and not _replaced(receipt, chunk)
        if finished and receipt:
            for reject in receipt.rejects:
                _count_reject(job, state, reject.reason, reject.source)
        if finished or not mine:
            state.progress.done(len(chunk.records), sum(state.rejects.values()), skipped=True)
            continue
        if not state.probed:
            _probe_decoders(chunk)
            state.probed = True
        (job.out / MANIFEST).unlink(missing_ok=True)  # it would describe a shard that is about to change
        for start in range(0, len(chunk.records), TASK):
            records = list(chunk.records[start : start + TASK])
            yield (chunk, start + TASK >= len(chunk.records)), records


def _replaced(receipt: Receipt, chunk: Chunk) -> bool:
    """Whether a rejected file has another size now: the user fetched it again."""
    if not receipt.rejects:
        return False
    images = {record.key: record.image for record in chunk.records}
    return any(bytes_of(images[reject.key]) != reject.bytes for reject in receipt.rejects)


def _probe_decoders(chunk: Chunk) -> None:
    """Say which decoder is missing before hours of work, not after.

    Raises:
        DataError: a DICOM among the first images is compressed in a way nothing installed decodes.
    """
    for record in chunk.records[:PROBED]:
        if not isinstance(record.image, DrawnImage) and is_dicom(head_of(record.image)):
            from medunifier_cli.data.images.dicom import missing_decoder

            with opened(record.image) as file:
                lacking = missing_decoder(file)
            if lacking:
                raise DataError(f"{record.source}: {lacking}")


def _count_reject(job: Job, state: _State, reason: str, source: str) -> None:
    state.rejects[reason] += 1
    total = sum(state.rejects.values())
    if job.max_rejects is not None and total > job.max_rejects:
        said = ", ".join(f"{count:,} {name}" for name, count in sorted(state.rejects.items()))
        raise DataError(
            f"{job.raw}: {said}, more than --max-rejects {job.max_rejects}; the last one is {source}"
        )


def _note_drop(job: Job, state: _State, drops: IO[bytes], drop: Drop) -> None:
    with explained(job.out / RECEIPTS / DROPS):
        line = json.dumps({"source": drop.source, "reason": drop.reason}, ensure_ascii=False)
        drops.write(line.encode(errors="replace") + b"\n")
    if drop.reason.startswith("missing"):
        _count_reject(job, state, drop.reason, drop.source)
    state.progress.done(1, sum(state.rejects.values()), skipped=True)


def _check_folders(job: Job) -> None:
    raw, out = job.raw, job.out
    if not job.plugin.needs_raw:
        return
    where = f"--raw FOLDER, or put it there. Needed: {job.plugin.needs or job.plugin.title}"
    if not raw.is_dir():
        raise DataError(f"{raw}: no such folder with the raw data; give {where}")
    with os.scandir(raw) as entries:
        if not any(entries):
            raise DataError(f"{raw} is empty; give {where}")
    if out.resolve() == raw.resolve() or raw.resolve() in out.resolve().parents:
        raise DataError(f"{out}: lies in the raw folder, which is only read; give another --out")


def _check_settings(job: Job) -> None:
    """Refuse to mix shards made in two ways."""
    path = job.out / RECEIPTS / SETTINGS
    mine = json.loads(json.dumps({**job.settings(), "made_with": made_with()}))
    if not path.exists():
        foreign = sorted(job.out.glob("*.tar"))
        if foreign:
            raise DataError(
                f"{job.out}: holds {foreign[0].name}, not made by `mu prepare`; give another --out"
            )
        write_json(path, mine)
        return
    try:
        begun = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: damaged; delete {job.out} and run again") from error
    changed = [name for name in mine if begun.get(name) != mine[name]]
    if changed:
        said = "; ".join(f"{name} {begun.get(name)} there, {mine[name]} now" for name in changed)
        raise DataError(f"{job.out}: begun with other settings ({said}); give another --out or delete it")


@contextlib.contextmanager
def _drops_file(job: Job) -> Iterator[IO[bytes]]:
    """The plugin's drops; every part writes the same file, so the last one to rename it changes nothing."""
    path = job.out / RECEIPTS / f"drops-{job.part[0]}of{job.part[1]}.jsonl{TEMPORARY}"
    try:
        with explained(path):
            file = open(path, "wb")  # noqa: SIM115 - closed below
        try:
            yield file
        finally:
            with explained(path):
                file.close()
        os.replace(path, job.out / RECEIPTS / DROPS)
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(out: Path, part: tuple[int, int]) -> Iterator[None]:
    """One call per part at a time; where the file system has no locks, nobody is kept out."""
    with open(out / RECEIPTS / f"lock-{part[0]}of{part[1]}", "wb") as file:
        try:
            # Not flock: forked workers would hold it for a moment after their parent was killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DataError(f"{out}: another `mu prepare` is at work there; wait for it") from error
        except OSError:
            pass
        yield


@contextlib.contextmanager
def _join_lock(out: Path) -> Iterator[None]:
    with open(out / RECEIPTS / "lock-join", "wb") as file:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield
