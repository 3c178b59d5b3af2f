"""The texts of a sample as priors read them: the whole text, and each of its sections alone.

Letters: B samples, V texts of a sample, D width of f_t_cls, M tokens of the longest text that the run allows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.batch import PackedText
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.data.texts.report import compose

NO_TOKEN = -1
"""Stands behind the end of a text in a row of token ids."""


def section_texts(
    trained: PretrainedRun, source: SplitSource, places: Sequence[int]
) -> list[list[list[int]]]:
    """Token ids of each section of the text of some samples, [V - 1][B]; empty where there is none."""
    settings = trained.recipe.text
    metas = [source.meta(place) for place in places]
    views = []
    for section in source.sections:
        texts = [
            compose(meta.get("sections") or {}, (section,), "any", settings.strip_deidentified)
            for meta in metas
        ]
        views.append([trained.tokenizer.encode(text, settings.max_tokens) if text else [] for text in texts])
    return views


def section_features(
    trained: PretrainedRun, sections: list[list[list[int]]], whole_BD: Tensor
) -> list[Tensor]:
    """A feature [B, D] for each section; samples without the section get `whole_BD`."""
    features = []
    for ids in sections:
        rows = [row for row, text in enumerate(ids) if text]
        feature_BD = whole_BD.float().clone()
        if rows:
            packed = PackedText.of([ids[row] for row in rows], trained.device)
            feature_BD[rows] = trained.model.encode_text(packed).float()
        features.append(feature_BD)
    return features


def token_rows(whole: PackedText, sections: list[list[list[int]]], longest: int) -> Tensor:
    """Token ids of texts and their sections, int32 [B, V, M]; the whole text where there is no section."""
    whole_ids = [text.tolist() for text in torch.split(whole.on_host().ids_N, whole.lengths_B.tolist())]
    token_BVM = torch.full((len(whole_ids), 1 + len(sections), longest), NO_TOKEN, dtype=torch.int32)
    for view, texts in enumerate([whole_ids, *sections]):
        for row, ids in enumerate(texts):
            ids = ids or whole_ids[row]
            token_BVM[row, view, : len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return token_BVM


def texts_of_rows(token_BM: Tensor, device: torch.device) -> PackedText:
    """Rows of token ids, as `token_rows` gives them, as packed texts."""
    told = token_BM != NO_TOKEN
    ids_N = token_BM[told].long()
    return PackedText(ids_N.to(device), told.sum(1), ids_N)
