"""Walk through a tar whose headers anybody may have written.

Before Python 3.11.14, `tarfile` goes round for ever at a member of negative size (CVE-2025-8194), and in
every version it reads the extended header of a member at once, however large that says it is.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = ["DAMAGED", "members"]

EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
EXTENDED_BYTES = 1 << 20
"""Largest extended header: it holds a name of at most 4,096 bytes and a few numbers."""
DAMAGED = (
    tarfile.TarError, ValueError, EOFError, OverflowError, AttributeError, IndexError, RecursionError,
    zlib.error,
)  # fmt: skip
"""What `tarfile` raises for damaged headers, apart from an OSError of the file itself.

Most come from numbers in extended headers, which it does not check, and from thousands of these in a row.
"""


class _Member(tarfile.TarInfo):
    """A header whose sizes have been checked."""

    def _block(self, count: int) -> int:
        # the correction of Python 3.11.14: every size, also one of an extended header, goes through here
        if count < 0:
            raise tarfile.ReadError("a member of negative size")
        if self.type in EXTENDED and count > EXTENDED_BYTES:
            raise tarfile.ReadError("an extended header of more than 1 MiB")
        return int(super()._block(count))  # type: ignore[misc]


def members(file: IO[bytes] | Path, mode: str = "r:") -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """(archive, member) of each member in turn; sparse files are left out, as their contents lie elsewhere.

    Args:
        file: path of the tar, or the open file.
        mode: of `tarfile.open`; `r|` for a file that cannot seek, whose members are read as they come.

    Raises:
        OSError: the file cannot be read.
        Exception: one of `DAMAGED`.
    """
    path = {"name": file} if isinstance(file, Path) else {"fileobj": file}
    with tarfile.open(**path, mode=mode, tarinfo=_Member) as archive:  # type: ignore[call-overload]
        for member in archive:
            if not member.issparse():
                yield archive, member
