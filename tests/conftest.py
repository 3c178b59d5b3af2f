"""What every test stands on: no network, and roots of data and runs that are the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is first imported


@pytest.fixture(autouse=True)
def own_roots(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$MU_DATA`, `$MU_RUNS` and caches in a folder of this test: none touches what a user has prepared."""
    folder: Path = tmp_path_factory.mktemp("roots")
    monkeypatch.setenv("MU_DATA", str(folder / "data"))
    monkeypatch.setenv("MU_RUNS", str(folder / "runs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return folder
