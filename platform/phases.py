"""How long the parts of a stage take, in its log."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("echostill.phases")


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log a phase and its seconds, at level INFO, when it ends."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    LOGGER.info("%s: %.2f s", name, seconds, extra={"phase": name, "seconds": seconds})
