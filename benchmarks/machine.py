"""What a benchmark ran on, in one line."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Say processor, cores that this process may use, memory and the versions that matter."""
    import numpy
    import PIL
    import pyarrow
    import ray
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} core(s), {memory:.0f} GiB, {gpus} GPU(s); "
        f"Python {platform.python_version()}, torch {torch.__version__}, ray {ray.__version__}, "
        f"numpy {numpy.__version__}, pyarrow {pyarrow.__version__}, Pillow {PIL.__version__}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
