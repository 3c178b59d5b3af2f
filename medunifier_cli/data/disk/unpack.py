"""Unpack gzip, zip and deflate with a bound: a few MiB of packed zeros are many GiB unpacked.

Every bound of an input's size is here, so that one look shows what a single file may cost.
"""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from typing import IO, BinaryIO, cast

from medunifier_cli.errors import DataError

IMAGE_BYTES = 1 << 28
"""Largest image file, unpacked; a radiograph of 16 bits that is not compressed takes 50 MB."""
META_BYTES = 1 << 22
"""Largest `<key>.json` or `<key>.txt` of a sample; the longest of ours hold masks of SIIM, below 1 MiB."""
REPORT_BYTES = 1 << 20
"""Largest file that holds one report."""
TABLE_BYTES = 1 << 30
"""Largest table, unpacked; the metadata of MIMIC-CXR, the largest that is read, takes 60 MB."""
LIST_BYTES = 1 << 26
"""Largest list of ids or keys; a million of 60 characters fit."""
ARCHIVE_BYTES = 1 << 28
"""Largest archive of reports, unpacked; that of Open-i takes 20 MB."""


class TooLargeError(DataError):
    """An input that is larger, once unpacked, than anything of its kind is."""


class Limited(io.RawIOBase):
    """A file to read from, of which at most `limit` bytes are handed out: more end in an error.

    Args:
        file: open, and possibly unpacking itself while it is read; closed by the caller.
        limit: in bytes.
        shown: names the file in the message.
    """

    def __init__(self, file: IO[bytes], limit: int, shown: str) -> None:
        super().__init__()
        self._file, self._limit, self._shown, self._read = file, limit, shown, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        """As of any raw file.

        Raises:
            TooLargeError: more than `limit` bytes have been read.
        """
        view = memoryview(cast("bytearray", buffer)).cast("B")
        body = self._file.read(min(len(view), self._limit + 1 - self._read))
        self._read += len(body)
        if self._read > self._limit:
            raise too_large(self._shown, self._limit)
        view[: len(body)] = body
        return len(body)


def too_large(shown: str, limit: int) -> TooLargeError:
    """The error for an input of more than `limit` bytes."""
    return TooLargeError(f"{shown}: larger than {limit:,} bytes, the most that is read of such a file")


def read_at_most(file: IO[bytes], limit: int, shown: str) -> bytes:
    """The rest of an open file.

    Raises:
        TooLargeError: it is more than `limit` bytes.
    """
    content = file.read(limit + 1)
    if len(content) > limit:
        raise too_large(shown, limit)
    return content


def gunzip(packed: IO[bytes], limit: int, shown: str) -> bytes:
    """The unpacked contents of a gzipped file.

    Raises:
        TooLargeError: more than `limit` bytes.
        OSError, EOFError, zlib.error: damaged.
    """
    with gzip.GzipFile(fileobj=packed) as file:
        return read_at_most(cast("IO[bytes]", file), limit, shown)


def member_bytes(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The unpacked contents of a member; `zipfile` never reads more of one than the size it declares.

    Raises:
        KeyError: no such member.
        TooLargeError: it declares more than `limit` bytes.
        Exception: whatever `zipfile` raises for a damaged one.
    """
    if archive.getinfo(name).file_size > limit:
        raise too_large(f"{archive.filename}!{name}", limit)
    return archive.read(name)


def dicom_within(file: IO[bytes], limit: int) -> bool:
    """Whether a DICOM, in whichever encoding, takes at most `limit` bytes; the file is left at its start.

    pydicom unpacks a deflated one (PS3.5, A.5) at once when it is opened, whatever part of it is asked for.
    """
    from pydicom.filereader import _read_file_meta_info, read_preamble  # here: not every download has DICOM
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        read_preamble(cast("BinaryIO", file), True)
        syntax = _read_file_meta_info(cast("BinaryIO", file)).get("TransferSyntaxUID")
        return syntax != DeflatedExplicitVRLittleEndian or inflates_within(file, limit)
    except Exception:  # damaged, as whoever reads the whole of it will find
        return True
    finally:
        file.seek(0)


def inflates_within(packed: IO[bytes], limit: int) -> bool:
    """Whether the rest of a file, packed by raw deflate, unpacks to at most `limit` bytes; keeps none."""
    unpacker, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while block := unpacker.unconsumed_tail or packed.read(1 << 16):
        size += len(unpacker.decompress(block, 1 << 20))
        if size > limit:
            return False
        if unpacker.eof:
            break
    return True
