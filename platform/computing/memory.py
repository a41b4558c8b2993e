"""Memory of large tensors on CPUs."""

import os
from pathlib import Path

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KEY = "THP_MEM_ALLOC_ENABLE"


def use_huge_pages(pages: Path = PAGES) -> None:
    """Let PyTorch ask Linux for pages of 2 MB; for this process and those it starts.

    A tensor of some MB is given back to the system when it is freed, and the next one is filled
    page by page again: with pages of 4 kB that is some 4% of a teacher's pass. Nothing is computed
    otherwise. PyTorch reads this when it makes its first tensor. What the user has set stays, and
    systems that know no such pages are left alone.
    """
    try:
        known = pages.read_text()
    except OSError:
        return
    if "[never]" not in known:
        os.environ.setdefault(KEY, "1")
