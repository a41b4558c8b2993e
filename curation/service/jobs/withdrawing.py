"""The process of one withdrawal: the same call as `echostill withdraw`."""

import json
import sys

from echostill.curation.service import children
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw


def main(root: str) -> None:
    """Withdraw in a child process of the service, which says on standard input what."""
    given = json.loads(sys.stdin.readline())
    request = None if given["request"] is None else WithdrawalRequest(**given["request"])
    key = None if given["key"] is None else bytes.fromhex(given["key"])

    def work(send: children.Send) -> None:
        def report(stage: str, fraction: float) -> None:
            send(stage=stage, fraction=fraction)

        receipt = withdraw(root, request, reason=given["reason"], key=key, report=report)
        send(done=receipt.number)

    children.in_child(work, outlives=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
