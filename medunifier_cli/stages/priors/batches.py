"""Batches of codes and texts from `codes.h5`, as priors are trained and measured on them.

Letters: B maps of a batch, V texts of a sample, M tokens of the longest text, D width of a text's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.checkpoint.priors import text_states
from medunifier_cli.distributed import draws
from medunifier_cli.prior.contract import CodeBatch, Prior
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.stages.codes import Codes
from medunifier_cli.stages.priors.views import texts_of_rows


class CodeBatches:
    """Makes the batches of one split."""

    def __init__(self, recipe: PriorRecipe, trained: PretrainedRun, prior: Prior, codes: Codes) -> None:
        self.codes, self.prior, self._trained = codes, prior, trained
        self._seed, self._settings = recipe.train.seed, recipe.prior

    def training(self, samples: NDArray[np.int64], positions: Sequence[int]) -> CodeBatch:
        """Samples at positions of the endless order: a text of each, or none, and what is hidden of it."""
        # by position, not by batch: the number of ranks and a resumed run change no draw
        chance_BN = self._chances(draws.CODE_MASK, positions)
        if self._settings.condition == "none":
            return self._batch(samples, 0, None, chance_BN)
        views = self.codes.text_nVD.shape[1]
        view_B = (draws.uniform(self._seed, draws.TEXT_VIEW, positions) * views).long().numpy()
        drop_B = draws.uniform(self._seed, draws.TEXT_DROP, positions) < self._settings.drop_text
        return self._batch(samples, view_B, drop_B.to(self._trained.device), chance_BN)

    def held_out(self, samples: NDArray[np.int64], without_text: bool) -> CodeBatch:
        """Samples with their whole texts, or with none; what is hidden is a function of a sample's number."""
        drop_B = torch.ones(len(samples)).bool().to(self._trained.device) if without_text else None
        return self._batch(samples, 0, drop_B, self._chances(draws.CODE_MASK_HELD_OUT, samples.tolist()))

    def _chances(self, purpose: int, positions: Sequence[int]) -> Tensor | None:
        if not self.prior.chances:
            return None
        return draws.uniforms(self._seed, purpose, positions, self.prior.chances).to(self._trained.device)

    def _batch(
        self, samples: NDArray[np.int64], view_B: Any, drop_B: Tensor | None, chance_BN: Tensor | None
    ) -> CodeBatch:
        codes, device = self.codes, self._trained.device

        def to_device(rows: NDArray[Any], kind: type[Any]) -> Tensor:
            return torch.from_numpy(rows.astype(kind)).to(device)

        with_text = self._settings.condition == "text"
        tokens = None
        if with_text and self.prior.tokens:
            assert codes.token_nVM is not None  # `made_of` sees to it
            token_BM = torch.from_numpy(codes.token_nVM[samples, view_B])
            tokens = text_states(self._trained, texts_of_rows(token_BM, device))
        feature = with_text and not self.prior.tokens
        return CodeBatch(
            to_device(codes.top_nTT[samples], np.int64),
            to_device(codes.bottom_nGG[samples], np.int64),
            to_device(codes.text_nVD[samples, view_B], np.float32) if feature else None,
            drop_B,
            tokens,
            chance_BN,
        )
