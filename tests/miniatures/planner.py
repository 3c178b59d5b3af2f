"""Make a miniature download and plan it with a data set plugin: what the tests of all data sets do first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medunifier_cli.data.contract import DatasetPlugin, Drop, Plan, Record
from tests.miniatures.pictures import leave_rubbish


def miniature(factory: pytest.TempPathFactory, write: Callable[[Path], None]) -> Path:
    """A new folder that `write` fills, with the leftovers that real downloads have."""
    raw = factory.mktemp("raw")
    write(raw)
    leave_rubbish(raw)
    return raw


@dataclass(frozen=True)
class Planner:
    """A plugin, and values that replace its default options because a miniature is small."""

    plugin: DatasetPlugin
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, raw: Path, **options: Any) -> Plan:
        """The plan with a value for every option; a misspelt option fails here."""
        values = {name: option.default for name, option in self.plugin.options.items()}
        assert set(options) <= set(values)
        return self.plugin.plan(raw, {**values, **self.defaults, **options})

    def items(self, raw: Path, **options: Any) -> tuple[list[Record], list[Drop]]:
        """All records and all drops."""
        items = list(self.plan(raw, **options).records)
        records = [item for item in items if isinstance(item, Record)]
        drops = [item for item in items if isinstance(item, Drop)]
        assert len(records) + len(drops) == len(items)
        return records, drops

    def records(self, raw: Path, **options: Any) -> list[Record]:
        """The records alone."""
        return self.items(raw, **options)[0]
