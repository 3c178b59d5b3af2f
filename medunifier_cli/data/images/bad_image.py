"""The one error of an image that cannot be used; it is counted and listed, never fatal."""

from __future__ import annotations

from typing import Literal

Reason = Literal["missing", "truncated", "undecodable"]


class BadImage(Exception):
    """An image file that is left out.

    Args:
        reason: what is counted.
        detail: what is listed with it; the same on every machine, so no addresses and no temporary names.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadImage], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
