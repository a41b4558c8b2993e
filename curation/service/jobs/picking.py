"""The process of one pick: the same call as `echostill select`, here or on a Ray cluster."""

import json
import sys
from typing import Any

from echostill.curation.selection.stage import SelectConfig, select
from echostill.curation.service import children
from echostill.platform.config import validate


def pick(values: dict[str, Any], address: str | None, say: children.Say) -> None:
    """Pick a coreset.

    Args:
        values: keys of ``SelectConfig``.
        address: of a Ray cluster; None to pick in this process.
        say: told stage and fraction, and at the end what was done.
    """
    config = validate(SelectConfig, values)

    def report(stage: str, fraction: float) -> None:
        say(stage=stage, fraction=fraction)

    if address is None:
        say(done=str(select(config, report=report)))
        return
    from echostill.platform import runtime
    from echostill.platform.ray_tasks import TaskPool

    runtime.connect(address)
    say(stage="on Ray", fraction=0.05)
    # Retries are safe: a pick that was cut short continues, a finished one is found done.
    for _, done in TaskPool(1, address=address).map(select, [config]):
        say(done=str(done))


def main(text: str, address: str | None = None) -> None:
    """Pick in a child process of the service."""
    children.in_child(lambda say: pick(json.loads(text), address, say))


if __name__ == "__main__":
    main(*sys.argv[1:])
