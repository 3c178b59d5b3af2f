"""Data set `webdataset`: shards that another tool wrote, such as img2dataset, read by the webdataset library.

The library unpacks the tars and groups their members into samples; what a member is for is decided here, by
its ending in any case: an image, a text, or JSON.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Drop,
    EncodedImage,
    NotTextError,
    Option,
    Plan,
    Record,
    decode_text,
    parse_json,
    tar,
)

from .raw.sampling import hash_share

IMAGES = ("png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "dcm")
TEXTS = ("txt", "caption", "text")
SPLITS = {"train": "train", "val": "valid", "valid": "valid", "validation": "valid", "test": "test"}
SHARES = {"train": 0.8, "valid": 0.9, "test": 1.0}
"""Upper end of each split's range of `hash_share`, for shards whose names say no split."""
SUBJECTS = ("subject", "subject_id", "patient", "patient_id")
CAPTIONS = ("caption", "text", "report", "findings", "impression")
"""Keys of the JSON that hold text, each a section of its own."""
MAX_TEXT = 1 << 22
"""Largest JSON or text of a sample, in bytes; a larger one counts as empty."""


@dataclass(frozen=True)
class _Sample:
    shard: Path
    key: str
    image: tuple[int, int] | None
    """Offset in the tar, past the header, and size, in bytes."""
    parts: Mapping[str, bytes]
    """Ending in lower case -> content, of texts, classes and JSON."""


class ForeignShards(DatasetPlugin):
    """WebDataset shards of another tool: image, text and JSON of each sample become a record of ours.

    Citation: that of the source of your shards
    Licence: that of the source of your shards
    Labels: none of its own; numbers in `.cls` become classes
    Homepage: https://github.com/webdataset/webdataset
    """

    name = "webdataset"
    title = "WebDataset shards of another tool"
    citation = licence = "that of the source of your shards"
    homepage = "https://github.com/webdataset/webdataset"
    needs = "tars as a folder, one file or a pattern such as 'shards/{00000..00099}.tar'"
    raw_form = "pattern"
    text_sections = ("caption",)
    options: ClassVar[Mapping[str, Option]] = {
        "split": Option("", "split of all samples; by default by the shards' names, else 80/10/10 by key"),
        "subject": Option("", "key of the JSON that names the patient; by default found by its name"),
        "seed": Option(0, "seed of the split by key"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        shards = _shards(raw)
        named = {shard: _split_of(shard) for shard in shards}
        by_name = all(named.values())
        source = (
            f"all in {options['split']}" if options["split"]
            else "names of the shards" if by_name else "hash of the patient or key, 80/10/10"
        )  # fmt: skip
        classes, sections = _contents(shards)
        return Plan(
            records=_records(shards, named if by_name else {}, options, classes),
            split_source=source,
            seed=None if options["split"] or by_name else options["seed"],
            notes=[f"{len(shards):,} shards; text: {', '.join(sections) or 'none'}; split: {source}"],
            splits=(options["split"],) if options["split"] else (),
            classes=classes,
            text_sections=sections or ("caption",),
        )


def _shards(raw: Path) -> list[Path]:
    """The tars that a folder, a file or a pattern names.

    Raises:
        DataError: none, or one of a pattern that is not there.
    """
    from webdataset.shardlists import (
        expand_urls,  # imports torch, which `mu prepare --list` need not wait for
    )

    if raw.is_dir():
        found = [path for path in sorted(raw.rglob("*.tar")) if not path.name.startswith("._")]
        if not found:
            raise DataError(f"{raw}: no .tar in this folder")
        return found
    paths = [Path(name) for name in expand_urls(str(raw))]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(f"{missing[0] if missing else raw}: no such shard")
    return paths


def _split_of(shard: Path) -> str:
    """`cxr-train-000001.tar` or `val/000.tar` -> the split that a word of the name is."""
    words = re.split(r"[^a-z]+", f"{Path(os.path.abspath(shard)).parent.name}/{shard.stem}".lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "")


def _samples(shard: Path) -> Iterator[_Sample]:
    """The samples of one tar, in its order, grouped by the library.

    Raises:
        DataError: it is damaged, or holds two members of one name.
    """
    from webdataset.tariterators import group_by_keys

    try:
        for group in group_by_keys(_members(shard), keys=_parts_of):
            endings = [ending for ending in IMAGES if ending in group]
            parts = {ending: group[ending] for ending in (*TEXTS, "json", "cls") if ending in group}
            yield _Sample(shard, group["__key__"], group[endings[0]] if endings else None, parts)
    except (OSError, *tar.DAMAGED) as error:
        why = "two members of one name, or damaged" if type(error) is ValueError else type(error).__name__
        raise DataError(f"{shard}: damaged or no tar ({why}); fetch it again") from error


def _members(shard: Path) -> Iterator[dict[str, Any]]:
    """Name and content of each member, as the library wants them; of an image its place in the file alone."""
    for archive, member in tar.members(shard):
        if not member.isfile() or PurePosixPath(member.name).name.startswith("._"):
            continue  # `._x` is what macOS adds
        data: Any = (member.offset_data, member.size)
        ending = _parts_of(member.name)[1].lower()
        if ending not in IMAGES:
            file = archive.extractfile(member) if member.size <= MAX_TEXT else None
            data = file.read() if file is not None else b""
        yield {"fname": member.name, "data": data, "__url__": str(shard)}


def _parts_of(name: str) -> tuple[str, str]:
    """Key and ending of a member.

    The library ends a key at its first dot. Other tools write dots into keys (`1.2.840.png`), so a last
    ending that is known counts first.
    """
    from webdataset.tariterators import base_plus_ext

    path = PurePosixPath(name)
    ending = path.suffix[1:]
    if ending.lower() in (*IMAGES, *TEXTS, "json", "cls"):
        return str(path.with_suffix("")), ending
    key, rest = base_plus_ext(name)
    return key or name, rest or ""


def _contents(shards: Sequence[Path]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(class names from `.cls`, sections of text) of all samples; one pass over the tars' texts."""
    classes: set[str] = set()
    sections: dict[str, None] = {}
    for shard in shards:
        for sample in _samples(shard):
            where = f"{shard}: {sample.key}"
            if "cls" in sample.parts:
                classes.add(_class_of(sample, where))
            sections.update(dict.fromkeys(_texts(sample, where)))
    numeric = all(name.isdigit() for name in classes)
    return tuple(sorted(classes, key=int if numeric else str)), tuple(sections)  # type: ignore[arg-type]


def _class_of(sample: _Sample, where: str) -> str:
    text = decode_text(sample.parts["cls"], where).strip()
    if not re.fullmatch(r"[\w -]{1,60}", text):
        raise DataError(f"{where}: its .cls holds no class, which is a number or a short name")
    return text


def _texts(sample: _Sample, where: str) -> dict[str, str]:
    """Section -> text; a text file counts before the same caption in the JSON."""
    texts: dict[str, str] = {}
    for ending in TEXTS:
        if ending in sample.parts and "caption" not in texts:
            texts["caption"] = decode_text(sample.parts[ending], where).strip()
    meta = _meta(sample, where)
    for name in CAPTIONS:
        value = meta.get(name)
        section = "caption" if name in ("caption", "text") else name
        if isinstance(value, str) and value.strip():
            texts.setdefault(section, value.strip())
    return {name: text for name, text in texts.items() if text}


def _meta(sample: _Sample, where: str) -> dict[str, Any]:
    return parse_json(sample.parts["json"], dict[str, Any], where) if "json" in sample.parts else {}


def _records(
    shards: Sequence[Path], splits: Mapping[Path, str], options: Mapping[str, Any], classes: Sequence[str]
) -> Iterator[Record | Drop]:
    names = _names(shards)
    for shard in shards:
        for sample in _samples(shard):
            where = f"{shard}: {sample.key}"
            source = f"{names[shard]}/{sample.key}"
            if sample.image is None:
                yield Drop("missing", source)
                continue
            try:
                texts, meta = _texts(sample, where), _meta(sample, where)
                found = _class_of(sample, where) if "cls" in sample.parts else None
            except NotTextError:
                yield Drop("missing: text that is not UTF-8", source)
                continue
            keys = [options["subject"]] if options["subject"] else SUBJECTS
            subject = next((str(meta[name]) for name in keys if meta.get(name) not in (None, "")), "")
            share = hash_share(subject or sample.key, options["seed"])
            drawn = next(name for name, end in SHARES.items() if share < end)
            labels: dict[str, float | None] = {name: float(name == found) for name in classes}
            yield Record(
                key=_key(source),
                image=EncodedImage(functools.partial(_slice, shard, *sample.image), container=shard),
                split=options["split"] or splits.get(shard) or drawn,
                subject=subject or source,
                study=subject or source,
                source=source,
                sections=texts,
                labels=labels if found is not None else dict.fromkeys(classes),
                text_kind="caption" if set(texts) <= {"caption"} else "report",
            )


def _names(shards: Sequence[Path]) -> dict[Path, str]:
    """What each shard is called: its name, with its folder where several have one name, as 00000.tar."""
    alike = Counter(shard.name for shard in shards)
    top = os.path.commonpath([os.path.abspath(shard.parent) for shard in shards])
    return {
        shard: shard.name if alike[shard.name] == 1 else Path(os.path.relpath(shard, top)).as_posix()
        for shard in shards
    }


def _slice(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _key(source: str) -> str:
    """The key without what a WebDataset key may not hold; the hash keeps two apart that become alike."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", source)[-70:].strip("_")
    return f"{plain}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
