"""The endless order of training samples: a pure function of (seed, epoch, position).

Place p of the order is position p % n of epoch p // n. Ranks, workers and shards play no part in it, so a
run may go on with another number of any of them and see the same samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
            raise ValueError(f"an order needs n >= 1 and seed >= 0, not n={n}, seed={seed}")
        self.n = n
        self.seed = seed
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The samples of one epoch in their order, int64 [n]; the last one asked for is kept."""
        if epoch != self._epoch:
            # Philox is counter-based: its stream is a function of the key alone.
            generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], np.uint64)))
            self._permutation = generator.permutation(self.n).astype(np.int64, copy=False)
            self._permutation.flags.writeable = False
            self._epoch = epoch
        return self._permutation

    def index(self, place: int) -> int:
        """The sample at one place of the endless order, in [0, n)."""
        return int(self.permutation(place // self.n)[place % self.n])

    def indices(self, start: int, stop: int) -> NDArray[np.int64]:
        """The samples at places start, ..., stop - 1, int64; the stretch may cross epochs."""
        pieces = []
        while start < stop:
            epoch, position = divmod(start, self.n)
            end = min(self.n, position + stop - start)
            pieces.append(self.permutation(epoch)[position:end])
            start += end - position
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
