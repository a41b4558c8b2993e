#!/usr/bin/env python3
"""The health check of the image: asks whatever server the container was started for.

It needs the standard library alone, since it runs every few seconds: importing Ray would cost more
than the check. A container without a server (a stage, the command line) is healthy while it runs.
"""

import itertools
import sys
import urllib.error
import urllib.request
from pathlib import Path

# Words of a command, in their order, and where its server answers.
SERVERS = (
    (("ray", "start"), "http://127.0.0.1:52365/api/local_raylet_healthz"),
    (("mlflow", "server"), "http://127.0.0.1:5000/health"),
    (("echostill", "serve"), "http://127.0.0.1:8420/healthz"),
)


def address_of(command: list[str]) -> str | None:
    """Where the server of a command answers, None without a server."""
    names = [Path(word).name for word in command]
    for words, address in SERVERS:
        if words in itertools.pairwise(names):
            return address
    return None


def commands() -> list[list[str]]:
    """The commands of all processes of the container; the first may be a small init."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace").split("\0"))
        except OSError:
            continue  # the process has ended
    return found


def main() -> int:
    """Exit status 0 if every server answers, else 1 with a line that names it."""
    for address in {address_of(command) for command in commands()} - {None}:
        try:
            with urllib.request.urlopen(str(address), timeout=10) as answer:
                answer.read()
        except (urllib.error.URLError, OSError) as error:
            print(f"{address}: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
