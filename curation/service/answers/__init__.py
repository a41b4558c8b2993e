"""The service's answers as plain values, one function per question.

The HTTP routes turn them into responses; ``curation.local`` returns them without a server. There, a
command asks one question: a module is loaded, with all that it needs, when it is first asked.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echostill.curation.service.answers import (
        atlas,
        coresets,
        exports,
        images,
        map,
        neighbours,
        pins,
        samples,
        uploads,
    )

__all__ = [
    "atlas",
    "coresets",
    "exports",
    "images",
    "map",
    "neighbours",
    "pins",
    "samples",
    "uploads",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return import_module(f"{__name__}.{name}")
