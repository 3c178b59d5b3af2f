"""Plugins of others: installed as a package manager would, into a site folder of their own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from medunifier_cli import plugin_index
from medunifier_cli.errors import MuError
from tests.folders import ROOT

Install = Callable[..., None]

GOOD = """
from medunifier_cli.data.contract import DatasetPlugin, Plan


class Mine(DatasetPlugin):
    name = "{name}"
    title = "A third party's data"

    def plan(self, raw, options):
        return Plan(records=iter(()))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(package, module_source, {entry point name: attribute}, group)."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def _install(
        package: str, source: str, entries: dict[str, str], group: str = "medunifier.datasets"
    ) -> None:
        module = package.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{attribute}" for name, attribute in entries.items()]
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines) + "\n")

    yield _install
    for module in modules:
        sys.modules.pop(module, None)


def test_third_party_data_set_comes_beside_the_built_in_ones(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("their-xrays", GOOD.format(name="their-xrays"), {"their-xrays": "Mine"})
    found = plugin_index.load_all(plugin_index.DATASETS)
    assert found["their-xrays"].title == "A third party's data"
    assert found["phantom"].name == "phantom"
    assert plugin_index.load_dataset("their-xrays").name == "their-xrays"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
        ("class Mine: name = 'broken'", "it is not a medunifier_cli.data.contract.DatasetPlugin"),
        (GOOD.format(name="other"), "it calls itself `other`"),
    ],
)
def test_broken_plugin_is_one_warning_and_hides_no_other(
    install: Install, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    before = set(plugin_index.load_all(plugin_index.DATASETS))
    capsys.readouterr()
    install("broken-package", source, {"broken": "Mine"})
    install("z-good", GOOD.format(name="z-good"), {"z-good": "Mine"})
    assert set(plugin_index.load_all(plugin_index.DATASETS)) == before | {"z-good"}
    (warning,) = capsys.readouterr().err.splitlines()
    assert "`broken` of package broken-package" in warning
    assert said in warning


def test_asking_for_a_broken_plugin_is_an_error_and_for_another_one_is_not(install: Install) -> None:
    install("broken-package", "1 / 0", {"broken": "Mine"})
    with pytest.raises(
        MuError, match=r"`broken` of package broken-package .* cannot be loaded: ZeroDivisionError"
    ):
        plugin_index.load_dataset("broken")
    assert plugin_index.load_dataset("phantom").name == "phantom"


def test_unknown_name_lists_the_known_ones_and_the_nearest(install: Install) -> None:
    install("broken-package", "1 / 0", {"broken": "Mine"})
    with pytest.raises(MuError, match=r"no data set `phantm`; did you mean `phantom`\?") as caught:
        plugin_index.load_dataset("phantm")
    for name in plugin_index.entries(plugin_index.DATASETS):
        assert name in str(caught.value)
    assert "broken" in plugin_index.entries(plugin_index.DATASETS)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("kid", "no data set `kid`; did you mean `kids`"),
        # it said "no data set `kids`; did you mean `kids`?"
        ("kids", "plugin `kids`, which prepared these shards, is not installed here"),
    ],
)
def test_names_of_prepared_data_are_known_where_shards_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, line: str
) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path))
    (tmp_path / "shards" / "kids").mkdir(parents=True)
    (tmp_path / "shards" / "kids" / "manifest.json").write_text('{"dataset": "kids", "plugin": "kids"}')
    with pytest.raises(MuError, match=line):
        plugin_index.prepared_dataset(asked)


def test_a_folder_that_was_renamed_says_under_which_name_it_was_prepared(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"dataset": "kids", "plugin": "table"}')
    wanted = f"prepared as `kids`, not `adults`; give data.dataset=kids and data.shards={tmp_path}"
    with pytest.raises(MuError, match=re.escape(wanted)):
        plugin_index.prepared_dataset("adults", tmp_path)


def test_name_taken_twice_is_said_and_the_built_in_one_is_used(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("a-copycat", GOOD.format(name="phantom"), {"phantom": "Mine"})
    assert type(plugin_index.load_dataset("phantom")).__module__ == "medunifier_plugins.phantom.dataset"
    (warning,) = capsys.readouterr().err.splitlines()
    assert "`phantom` of package a-copycat is hidden by the one of medunifier" in warning


def test_heads_come_by_their_own_door(install: Install) -> None:
    manual = (ROOT / "docs" / "howto-head.md").read_text(encoding="utf-8")
    source = manual.split("```python\n# my_head.py\n")[1].split("```")[0]
    install("my-head", source, {"norm-linear": "NormLinear"}, "medunifier.heads")
    head = plugin_index.load_head("norm-linear")
    query_BQD = torch.zeros(4, 8, 16)
    head.check(head.build(8, 16, 3), query_BQD, 3)
    assert "norm-linear" in plugin_index.load_all(plugin_index.HEADS)
    assert "norm-linear" not in plugin_index.entries(plugin_index.DATASETS)
    with pytest.raises(MuError, match="no head `norm-linaer`; did you mean `norm-linear`"):
        plugin_index.load_head("norm-linaer")


def test_what_is_no_head_is_told_so(install: Install) -> None:
    install("no-head", "class Head:\n    name = 'wide'\n", {"wide": "Head"}, "medunifier.heads")
    with pytest.raises(MuError, match=r"`wide` of package no-head .* it is not a .*\.HeadPlugin"):
        plugin_index.load_head("wide")


def test_names_are_known_without_importing_a_plugin(install: Install) -> None:
    install("lazy-package", GOOD.format(name="lazy"), {"lazy": "Mine"})
    assert "lazy" in plugin_index.entries(plugin_index.DATASETS)
    plugin_index.load_dataset("phantom")
    assert "lazy_package" not in sys.modules


def test_the_example_of_the_manual_works(install: Install, tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "howto-dataset.md").read_text(encoding="utf-8")
    source = manual.split("```python\n# my_xrays.py\n")[1].split("```")[0]
    install("my-xrays", source, {"my-xrays": "MyXrays"})
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "reports.csv").write_text(
        "file,patient,text,effusion\na.png,10b,Clear.,0\nb.png,331b,Fluid.,\nc.png,12,,1\n"
    )
    (raw / "a.png").write_bytes(b"")
    (raw / "b.png").write_bytes(b"")
    plugin = plugin_index.load_dataset("my-xrays")
    first, second, third = plugin.plan(raw, {}).records
    assert (first.split, first.labels, first.sections) == (
        "test",
        {"Pleural Effusion": 0.0, "No Pleural Effusion": 1.0},
        {"findings": "Clear."},
    )
    assert (second.split, second.labels) == ("train", dict.fromkeys(plugin.classes))
    assert (third.reason, third.source) == ("missing", "c.png")
    assert plugin.prompt_sets()["plain"]["Pleural Effusion"]
    with pytest.raises(MuError, match=r"reports\.csv: not found"):
        plugin.plan(tmp_path / "nowhere", {})
