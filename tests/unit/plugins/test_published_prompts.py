"""Published zero-shot prompts: word for word those that the programs of GLoRIA and MedUnifier generate.

The digests were made from the phrase tables of both programs (github.com/marshuang80/gloria,
gloria/constants.py; github.com/ZiyangZhang0511/MedUnifier, utilities/constants.py) with three nested
loops, as in these programs, and blanks collapsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import pytest
from medunifier_plugins.chexpert_5x200.dataset import CheXpert5x200
from medunifier_plugins.mimic_cxr.dataset import MimicCxr
from medunifier_plugins.raw.five_by_200 import CLASS_LISTS
from medunifier_plugins.rsna import Rsna

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.evaluate.retrieval.prompts import sample_prompts, select_prompt_sets

SHARED = {
    "Atelectasis": (210, "b42b0df092a163cc"),
    "Cardiomegaly": (15, "fcb3a9b71e9e616e"),
    "Consolidation": (192, "4973a1644c33cc8a"),
    "Edema": (18, "5e3e61e1369b4b31"),
    "Pneumonia": (234, "3f56c17208384501"),
}
MEDUNIFIER = {**SHARED, "Pleural Effusion": (36, "f721cd6f33f97ee3")}
GLORIA = {**SHARED, "Pleural Effusion": (36, "069722ab99f85592")}
RSNA = {"Pneumonia": (42, "83222cff4519db95"), "Normal": (27, "39287071fc7bf0d2")}
"""Class -> number of different prompts and start of the SHA-256 of their sorted lines."""

PLUGINS = (CheXpert5x200(), MimicCxr(), Rsna())


def digest(prompts: Sequence[str]) -> tuple[int, str]:
    return len(set(prompts)), sha256("\n".join(sorted(set(prompts))).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("plugin", "name", "published"),
    [
        (CheXpert5x200(), "gloria", MEDUNIFIER),
        (CheXpert5x200(), "gloria-original", GLORIA),
        (MimicCxr(), "gloria", MEDUNIFIER),
        (Rsna(), "gloria", RSNA),
    ],
)
def test_every_prompt_is_a_published_one(
    plugin: DatasetPlugin, name: str, published: Mapping[str, tuple[int, str]]
) -> None:
    prompts = plugin.prompt_sets()[name]
    assert {label: digest(lines) for label, lines in prompts.items()} == published


def test_the_paper_has_582_prompts_and_all_of_them_are_in_the_default_sets() -> None:
    paper = {(label, text) for label in CLASS_LISTS["paper"] for text in default(CheXpert5x200())[label]}
    rsna = {(label, text) for label, lines in default(Rsna()).items() for text in lines}
    assert len(paper) + len(rsna) == 582


@pytest.mark.parametrize(
    ("name", "label", "prompt"),
    [
        ("gloria", "Atelectasis", "subsegmental atelectasis at the mid lung zone"),
        ("gloria", "Atelectasis", "minimal residual atelectasis at the right lower lobe"),
        ("gloria", "Cardiomegaly", "persistent cardiomegaly with prominent upper lobe vessels"),
        ("gloria", "Consolidation", "apperance of patchy consolidation at the right uppper lobe"),
        ("gloria", "Edema", "presistent pulmonary interstitial edema"),
        ("gloria", "Pleural Effusion", "small bilateral pleural effusion left"),
        ("gloria-original", "Pleural Effusion", "small left bilateral pleural effusion"),
        ("gloria", "Pneumonia", "multifocal viral at the bilateral lung bases"),
        ("gloria", "Pneumonia", "mycoplasma"),
    ],
)
def test_words_and_their_order_are_the_published_ones(name: str, label: str, prompt: str) -> None:
    for plugin in (CheXpert5x200(), MimicCxr()):
        assert prompt in plugin.prompt_sets()[name][label]


def test_the_published_prompts_of_rsna_name_the_location_first_and_ours_last() -> None:
    sets = Rsna().prompt_sets()
    assert {"left lower lobe multifocal pneumonia", "lung bases basilar pneumonia"} <= set(
        sets["gloria"]["Pneumonia"]
    )
    assert {"no infection at the left lobe", "negative findings"} <= set(sets["gloria"]["Normal"])
    assert "patchy pneumonia in the left lower lung" in sets["ours"]["Pneumonia"]
    assert not any(text.startswith(("in ", "at ")) for text in sets["ours"]["Pneumonia"])


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_the_published_set_is_the_default_and_all_sets_cover_all_classes(plugin: DatasetPlugin) -> None:
    sets = plugin.prompt_sets()
    assert next(iter(sets)) == "gloria"
    assert select_prompt_sets(plugin, "")[""] == sets["gloria"]
    lists = CLASS_LISTS.values() if plugin.name != "rsna" else [plugin.classes]
    for prompts in sets.values():
        assert {label for labels in lists for label in labels} <= set(prompts)
        for lines in prompts.values():
            assert len(set(lines)) == len(lines)
            assert all(line == " ".join(line.split()) for line in lines)
    ours = [set(lines) for lines in sets["ours"].values()]
    assert not any(a & b for i, a in enumerate(ours) for b in ours[:i]), "no prompt describes two classes"
    assert sets["observed"]["Pneumonia"] == ["pneumonia is observed"]


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_as_many_are_sampled_as_published_and_the_seed_decides_which(plugin: DatasetPlugin) -> None:
    prompts, count = default(plugin), plugin.prompts_drawn
    assert count == (10 if plugin.name == "rsna" else 15)
    first = sample_prompts(prompts, plugin.classes, count, 0)
    assert first == sample_prompts(prompts, plugin.classes, count, 0)
    assert first != sample_prompts(prompts, plugin.classes, count, 1)
    for label, lines in first.items():
        assert len(set(lines)) == count
        assert set(lines) <= set(prompts[label])


def default(plugin: DatasetPlugin) -> Mapping[str, Sequence[str]]:
    return next(iter(plugin.prompt_sets().values()))
