"""Entry points -> plugins. Built-in ones come by the same door; a broken one is named and hides no other."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import click

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.errors import MuError

if TYPE_CHECKING:
    from medunifier_cli.model.head_contract import HeadPlugin

DATASETS = "medunifier.datasets"
HEADS = "medunifier.heads"
OURS = "medunifier"
"""Our distribution: where two packages offer one name, ours wins."""

_KIND = {DATASETS: "data set", HEADS: "head"}


def dataset_names() -> list[str]:
    """Names of all data set plugins, sorted, none of them imported."""
    return sorted(_index(DATASETS))


def head_names() -> list[str]:
    """Names of all head plugins, sorted, none of them imported."""
    return sorted(_index(HEADS))


def datasets() -> dict[str, DatasetPlugin]:
    """All data sets that load, by name; one warning on stderr for each that does not."""
    return _load_all(DATASETS)


def heads() -> dict[str, HeadPlugin]:
    """All heads that load, by name; one warning on stderr for each that does not."""
    return _load_all(HEADS)


def load_dataset(name: str) -> DatasetPlugin:
    """The data set `name`; no other plugin is imported.

    Raises:
        MuError: no plugin has that name, or it cannot be loaded.
    """
    plugin: DatasetPlugin = _load_one(DATASETS, name)
    return plugin


def load_head(name: str) -> HeadPlugin:
    """The head `name`; no other plugin is imported.

    Raises:
        MuError: no plugin has that name, or it cannot be loaded.
    """
    head: HeadPlugin = _load_one(HEADS, name)
    return head


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown package"


def _index(group: str) -> dict[str, EntryPoint]:
    """Entry points by name; a name offered twice is said on stderr."""
    found: dict[str, EntryPoint] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: (_package(e) != OURS, _package(e), e.value)):
        first = found.setdefault(entry.name, entry)
        if first is not entry and (first.value, _package(first)) != (entry.value, _package(entry)):
            _warn(
                f"{_KIND[group]} `{entry.name}` of package {_package(entry)} is hidden by the one of"
                f" {_package(first)}, which has the same name"
            )
    return found


def _load_all(group: str) -> dict[str, Any]:
    loaded = {}
    for name, entry in sorted(_index(group).items()):
        try:
            loaded[name] = _instance(group, entry)
        except MuError as error:
            _warn(f"{error}; it is left out")
    return loaded


def _load_one(group: str, name: str) -> Any:
    index = _index(group)
    if name not in index:
        nearest = difflib.get_close_matches(name, index, n=1)
        hint = f"did you mean `{nearest[0]}`? " if nearest else ""
        raise MuError(f"no {_KIND[group]} `{name}`; {hint}there are: {', '.join(sorted(index)) or 'none'}")
    return _instance(group, index[name])


def _instance(group: str, entry: EntryPoint) -> Any:
    """The plugin behind an entry point; a class is called without arguments.

    Raises:
        MuError: whatever went wrong, in one line with the plugin's and its package's name.
    """
    said = f"{_KIND[group]} plugin `{entry.name}` of package {_package(entry)} ({entry.value})"
    try:
        plugin = entry.load()
        if isinstance(plugin, type):
            plugin = plugin()
    except (Exception, SystemExit) as error:  # code of others: anything may come out of it
        first_line = (str(error).splitlines() or [""])[0]
        raise MuError(f"{said} cannot be loaded: {type(error).__name__}: {first_line}") from error
    contract = _contract(group)
    if not isinstance(plugin, contract):
        raise MuError(f"{said} cannot be used: it is no {contract.__module__}.{contract.__name__}")
    if getattr(plugin, "name", entry.name) != entry.name:
        raise MuError(f"{said} cannot be used: it calls itself `{plugin.name}`")
    return plugin


def _contract(group: str) -> type[Any]:
    if group == DATASETS:
        return DatasetPlugin
    from medunifier_cli.model.head_contract import HeadPlugin  # imports torch, as every head does

    return HeadPlugin


def _warn(line: str) -> None:
    click.echo(f"mu: warning: {line}", err=True)
