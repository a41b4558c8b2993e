"""The process of one pick: the same call as `echostill select`, here or on a Ray cluster."""

import json
import sys
from typing import Any

from echostill.curation.selection.stage import SelectConfig, select
from echostill.curation.service import children
from echostill.platform.config import validate


def pick(values: dict[str, Any], address: str | None, send: children.Send) -> None:
    """Pick a coreset.

    Args:
        values: keys of ``SelectConfig``.
        address: of a Ray cluster; None to pick in this process.
        send: called with stage and fraction, and at the end with the result in words.
    """
    config = validate(SelectConfig, values)

    def report(stage: str, fraction: float) -> None:
        send(stage=stage, fraction=fraction)

    if address is None:
        send(done=str(select(config, report=report)))
        return
    from echostill.platform import runtime
    from echostill.platform.ray_tasks import TaskPool

    runtime.connect_ray(address)
    send(stage="on Ray", fraction=0.05)
    # Retries are safe: an interrupted pick continues, a finished one is recognised.
    for _, done in TaskPool(1, address=address).map(select, [config]):
        send(done=str(done))


def main(text: str, address: str | None = None) -> None:
    """Pick in a child process of the service."""
    children.in_child(lambda send: pick(json.loads(text), address, send))


if __name__ == "__main__":
    main(*sys.argv[1:])
