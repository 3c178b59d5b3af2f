"""Find and load the data set and head plugins that installed packages declare as entry points.

Built-in plugins are declared in the same way as those of others. A broken one is named in a warning and hides
no other.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.disk.manifest import Manifest, read_manifest
from medunifier_cli.errors import MuError
from medunifier_cli.roots import prepared_names, shards_folder
from medunifier_cli.terminal.say import say

if TYPE_CHECKING:
    from medunifier_cli.model.head_contract import HeadPlugin

DATASETS = "medunifier.datasets"
HEADS = "medunifier.heads"
BUILT_IN = "medunifier"
"""Our own package, whose plugin is used where two packages declare the same name."""

_KIND = {DATASETS: "data set", HEADS: "head"}


def load_dataset(name: str) -> DatasetPlugin:
    """The data set `name`; no other plugin is imported.

    Raises:
        MuError: no plugin has that name, or it cannot be loaded.
    """
    plugin: DatasetPlugin = _load(DATASETS, name)
    return plugin


def prepared_dataset(name: str, shards: str | Path = "") -> DatasetPlugin:
    """The data set `name` as its shards were prepared: their classes, text sections and prompts.

    Args:
        name: of a plugin, or the name that `mu prepare --name` gave.
        shards: folder of the shards; empty for `$MU_DATA/shards/<name>`.

    Raises:
        MuError: no plugin has that name, or it cannot be loaded.
        DataError: the manifest of the shards cannot be read.
    """
    folder = Path(shards) if shards else shards_folder(name)
    manifest: Manifest = (read_manifest(folder) if folder.is_dir() else None) or {}
    written = manifest.get("dataset", name)
    if written != name and name not in entries(DATASETS):  # a folder that was copied or renamed
        raise MuError(
            f"{folder}: prepared as `{written}`, not `{name}`; give data.dataset={written} and "
            f"data.shards={folder}"
        )
    if written != name:  # the recipe names another data set: its own classes alone
        manifest = {"classes": manifest.get("classes", [])}
    plugin: DatasetPlugin = _load(DATASETS, manifest.get("plugin") or name, prepared_names())
    return plugin.as_prepared(manifest)


def load_head(name: str) -> HeadPlugin:
    """The head `name`; no other plugin is imported.

    Raises:
        MuError: no plugin has that name, or it cannot be loaded.
    """
    head: HeadPlugin = _load(HEADS, name)
    return head


def load_all(group: str) -> dict[str, Any]:
    """Every plugin of a group that loads, by name; one warning on stderr for each that does not.

    Args:
        group: `DATASETS` or `HEADS`.
    """
    plugins = {}
    for name, entry in sorted(entries(group).items()):
        try:
            plugins[name] = _instance(group, entry)
        except MuError as error:
            _warn(f"{error}; skipped")
    return plugins


def entries(group: str) -> dict[str, EntryPoint]:
    """Entry points of a group by name, none of them imported; a name declared twice triggers a warning."""
    by_name: dict[str, EntryPoint] = {}
    # sorted, so that the order of installation changes nothing: built-in plugins first, then by package
    ranked = sorted(entry_points(group=group), key=lambda e: (_package(e) != BUILT_IN, _package(e), e.value))
    for entry in ranked:
        first = by_name.setdefault(entry.name, entry)
        # an editable install can list one entry point twice, which is no conflict
        if first is not entry and (first.value, _package(first)) != (entry.value, _package(entry)):
            _warn(
                f"{_KIND[group]} `{entry.name}` of package {_package(entry)} is hidden by the one of"
                f" {_package(first)}, which has the same name"
            )
    return by_name


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else "an unknown package"


def _load(group: str, name: str, others: Iterable[str] = ()) -> Any:
    """A plugin; `others` are names that would have done as well, for the message."""
    index = entries(group)
    if name not in index and name in others:
        raise MuError(
            f"the {_KIND[group]} plugin `{name}`, which prepared these shards, is not installed here"
        )
    if name not in index:
        names = sorted({*index, *others})
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean `{nearest[0]}`? " if nearest else ""
        raise MuError(f"no {_KIND[group]} `{name}`; {hint}available: {', '.join(names) or 'none'}")
    return _instance(group, index[name])


def _instance(group: str, entry: EntryPoint) -> Any:
    """The plugin behind an entry point; a class is called without arguments.

    Raises:
        MuError: whatever went wrong, in one line with the plugin's and its package's name.
    """
    subject = f"{_KIND[group]} plugin `{entry.name}` of package {_package(entry)} ({entry.value})"
    try:
        plugin = entry.load()
        if isinstance(plugin, type):
            plugin = plugin()
    except (Exception, SystemExit) as error:  # a plugin is the code of others, which may raise anything
        first_line = (str(error).splitlines() or [""])[0]
        raise MuError(f"{subject} cannot be loaded: {type(error).__name__}: {first_line}") from error
    contract = _contract(group)
    if not isinstance(plugin, contract):
        raise MuError(f"{subject} cannot be used: it is not a {contract.__module__}.{contract.__name__}")
    if getattr(plugin, "name", entry.name) != entry.name:
        raise MuError(f"{subject} cannot be used: it calls itself `{plugin.name}`")
    return plugin


def _contract(group: str) -> type[Any]:
    if group == DATASETS:
        return DatasetPlugin
    from medunifier_cli.model.head_contract import HeadPlugin  # imports torch, as every head does

    return HeadPlugin


def _warn(line: str) -> None:
    say(f"warning: {line}")
