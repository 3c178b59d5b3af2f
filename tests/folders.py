"""Folders that tests read: the project, and real data beside it where a machine has them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
"""Real radiographs, reports and label tables, never part of the project; tests that need them skip."""
