"""Names that a package offers and imports when they are first used, and what is never needed.

Scoring and training need torch and timm, which take seconds to load; a question about a coreset, or
``--help``, needs neither.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

MANY = 100  # modules of a library that is worth the trouble


def lazy(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package.

    Args:
        package: Name of the package, ``__name__``.
        homes: For each name that it offers, the module below the package that defines it.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find


@contextmanager
def loading() -> Iterator[None]:
    """Load libraries without looking for garbage, nor ever again among what they made.

    torch, Ray and MLflow leave two million objects that stay until the process ends. Python's
    collector would look at each of them twice or more, which is a second of a training's start.
    Where everything is loaded already, nothing happens.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - known > MANY:
            gc.freeze()
        if enabled:
            gc.enable()


class _NoPandas:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Report that there is no pandas, and nothing of other names."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is not needed here", name=name)


def spare_pandas() -> None:
    """Have Arrow make arrays without loading pandas, for commands that answer in a moment.

    Arrow loads pandas (half a second) with the first array that it makes, to recognise a series.
    It looks once, and here it finds none; a later conversion to a data frame loads it after all.
    Arrow no longer recognises a series among what it makes arrays of, so this is for processes that
    have none.
    """
    import pyarrow as pa

    if "pandas" in sys.modules:
        return
    none = _NoPandas()
    sys.meta_path.insert(0, none)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(none)
