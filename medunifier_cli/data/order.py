"""The endless order of training samples: a pure function of (seed, epoch, index within the epoch).

With n samples, position p of the order is sample number p % n of epoch p // n. Ranks, workers and shards
play no part in it, so a run may resume with another number of any of them and see the same samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.distributed.draws import philox


class SampleOrder:
    """Every sample exactly once per epoch, each epoch in another order.

    Args:
        n: number of samples, >= 1.
        seed: >= 0.

    Raises:
        ValueError: n < 1 or a negative seed.
    """

    def __init__(self, n: int, seed: int) -> None:
        if n < 1 or seed < 0:
            raise ValueError(f"a sample order needs n >= 1 and seed >= 0, not n={n}, seed={seed}")
        self.n = n
        self.seed = seed
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The samples of one epoch in their order, int64 [n]; the latest epoch is cached, 8 n bytes."""
        if epoch != self._epoch:
            # Counter-based, so epoch 90 costs the same as epoch 0: a resumed run need not replay the
            # earlier shuffles, as it would with a stateful generator.
            self._permutation = philox(self.seed, epoch).permutation(self.n).astype(np.int64, copy=False)
            # Callers get slices of the cache itself; writing to one would change the rest of the epoch.
            self._permutation.flags.writeable = False
            self._epoch = epoch
        return self._permutation

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """The samples at positions start, ..., stop - 1, int64; the range may cross epochs."""
        # A batch that crosses into the next epoch is filled up from it. Dropping the last, incomplete batch
        # instead would lose up to a batch of samples per epoch and tie positions to the batch size.
        pieces = []
        while start < stop:
            epoch, first = divmod(start, self.n)
            end = min(self.n, first + stop - start)
            pieces.append(self.permutation(epoch)[first:end])
            start += end - first
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
