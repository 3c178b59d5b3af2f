"""Write a checkpoint while training continues: a copy of its tensors, which a thread brings to disk.

Only copying holds up the next step. Everything that ranks exchange stays in the main thread, which hears of a
failed write when it waits for it, or sees `failed`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medunifier_cli.checkpoint.best import PREFIX
from medunifier_cli.stopping import held

Tensors = Mapping[str, Mapping[str, Tensor]]
"""File -> name -> tensor, as a checkpoint has them."""


class Writer:
    """Writes one checkpoint at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._pinned: dict[tuple[str, str], Tensor] = {}

    def copy(self, tensors: Tensors) -> Tensors:
        """Copies on the CPU, which no later step changes. Call `wait` before.

        Those of a GPU are complete once the work that it was given so far is done, see `begin`. The memory
        for them is kept, as pinning it takes longer than the copy. The weights of the best validation are
        handed on as they are: they lie on the CPU, and a better one replaces them as a whole.
        """
        return {
            file: {name: self._copy(file, name, tensor.detach()) for name, tensor in by_name.items()}
            for file, by_name in tensors.items()
        }

    def _copy(self, file: str, name: str, tensor: Tensor) -> Tensor:
        if tensor.device.type != "cuda":
            if name.startswith(PREFIX):
                return tensor
            return tensor.clone(memory_format=torch.contiguous_format).cpu()
        buffer = self._pinned.get((file, name))
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._pinned[file, name] = buffer
        # in the order of the GPU's own work: the next step changes weights only after they were copied
        return buffer.copy_(tensor, non_blocking=True)

    def begin(self, write: Callable[[], object]) -> None:
        """Call `write` in a thread of its own, once what the GPU has been given so far is done."""
        done = torch.cuda.Event() if self._pinned else None  # type: ignore[no-untyped-call]
        if done is not None:
            done.record()

        def run() -> None:
            try:
                if done is not None:
                    done.synchronize()
                write()
            except BaseException as error:
                self._failure = error  # of any kind: it is the main thread's to raise

        # a daemon: an end of this process that does not wait leaves what a kill leaves
        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        with held():  # signals are for the main thread, and wake it from its waits
            self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the last write has failed by now."""
        return self._failure is not None

    def join(self) -> None:
        """Wait until no write is in flight, whatever comes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """As `join`, and raise what the write has raised."""
        self.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
