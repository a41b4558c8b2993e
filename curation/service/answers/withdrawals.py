"""Withdrawals: what one would remove, its start and progress, and the receipts of all."""

from collections.abc import Mapping
from typing import Any

from echostill.curation.service.jobs.withdrawals import Withdrawals
from echostill.curation.service.problems import Problem, conflict, unknown
from echostill.curation.withdrawal.receipt import Receipt
from echostill.curation.withdrawal.request import NothingFoundError, WithdrawalRequest


def withdrawal_list(withdrawals: Withdrawals) -> dict[str, Any]:
    """List the receipts, newest first, and what is at work."""
    return {
        "current": withdrawals.progress.as_dict(),
        "items": [receipt_item(receipt) for receipt in withdrawals.receipts()],
    }


def receipt_item(receipt: Receipt) -> dict[str, Any]:
    """Return a receipt as plain values."""
    return {**vars(receipt), "text": receipt.describe()}


def preview(withdrawals: Withdrawals, request: WithdrawalRequest, reason: str) -> dict[str, Any]:
    """Say what a withdrawal would remove.

    Raises:
        Problem: The store holds nothing of it, or another withdrawal has to be finished first.
        UsageError: A key is missing, or the reason names somebody.
    """
    return receipt_item(_preview(withdrawals, request, reason))


def withdraw(
    withdrawals: Withdrawals,
    request: WithdrawalRequest,
    reason: str,
    counts: Mapping[str, int],
    picking: set[str],
) -> dict[str, Any]:
    """Begin a withdrawal.

    Args:
        withdrawals: of the store.
        request: what is to be withdrawn.
        reason: why.
        counts: how much the caller expects to go, by the names in the receipt.
        picking: names of the coresets that jobs of this service are picking.

    Raises:
        Problem: As for :func:`preview`; something else would go than the caller expects; a job is
            picking a coreset.
    """
    if not reason.strip():
        raise Problem(422, "invalid", "a withdrawal needs a reason, which the receipt keeps.")
    if picking:
        raise conflict(f"a job is picking '{min(picking)}': cancel it, or wait until it is done.")
    found = _preview(withdrawals, request, reason).counts
    for name, expected in counts.items():
        if found[name] != expected:
            raise conflict(
                f"{name}: {found[name]} would go, not {expected}: look at the preview again."
            )
    return withdrawals.start(request, reason).as_dict()


def finish(withdrawals: Withdrawals) -> dict[str, Any]:
    """Finish a withdrawal that was interrupted.

    Raises:
        Problem: There is none, or it is at work.
    """
    if not withdrawals.is_pending:
        raise conflict("no withdrawal from this store was interrupted.")
    return withdrawals.start(None, "").as_dict()


def _preview(withdrawals: Withdrawals, request: WithdrawalRequest, reason: str) -> Receipt:
    if withdrawals.is_pending:
        raise conflict("a withdrawal from this store has begun and not ended: finish it first.")
    try:
        return withdrawals.preview(request, reason)
    except NothingFoundError as error:
        raise unknown(request.kind, str(error)) from None
