"""CITATION.cff and README cite the same paper, and the version is that of the package."""

from __future__ import annotations

import re

import yaml

from tests.folders import ROOT

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_citations_agree() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{cff["version"]}"' in PROJECT
    assert f'license = "{cff["license"]}"' in PROJECT
    paper = cff["preferred-citation"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    entry = dict(re.findall(r"^  (\w+)\s*= \{(.*?)\},?$", readme, flags=re.MULTILINE | re.DOTALL))
    assert " ".join(entry["title"].split()) == paper["title"]
    names = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    assert entry["author"] == " and ".join(names)
    assert (entry["booktitle"], entry["year"]) == (paper["collection-title"], str(paper["year"]))
