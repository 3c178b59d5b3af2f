"""What a benchmark ran on, in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def hardware() -> str:
    """Processor, cores, memory, PyTorch, GPU."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    parts = [
        processor(), f"{os.cpu_count()} cores", *([f"{pages / 2**30:.0f} GiB of memory"] if pages else []),
        f"PyTorch {torch.__version__}", f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU",
    ]  # fmt: skip
    return ", ".join(parts)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU, as far as the system tells it."""
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
