"""Routes of withdrawing images from the store: what would go, the withdrawal, its receipts."""

from typing import Annotated

from fastapi import APIRouter, Body
from fastapi.responses import Response

from echostill.curation.service.answers import withdrawals as answers
from echostill.curation.service.http.context import Context
from echostill.curation.service.http.models.withdrawals import (
    WithdrawalList,
    WithdrawalProgress,
    WithdrawalReceipt,
)
from echostill.curation.service.http.replies import documented, json_reply
from echostill.curation.service.http.requests import WithdrawalBody, Withdrawn
from echostill.curation.withdrawal.request import WithdrawalRequest

router = APIRouter(prefix="/v1", tags=["withdrawals"], default_response_class=Response)


@router.get("/withdrawals", responses=documented(WithdrawalList))
def withdrawals(context: Context) -> Response:
    """The receipts of all withdrawals, newest first, and the progress of one that is at work."""
    return json_reply(answers.withdrawal_list(context.withdrawals))


@router.post("/withdrawals/preview", responses=documented(WithdrawalReceipt))
def preview(context: Context, body: Annotated[Withdrawn, Body()]) -> Response:
    """What a withdrawal would remove, and what has seen it; nothing is changed."""
    return json_reply(answers.preview(context.withdrawals, _request(body), body.reason))


@router.post("/withdrawals", status_code=202, responses=documented(WithdrawalProgress, 202))
def withdraw(context: Context, body: Annotated[WithdrawalBody, Body()]) -> Response:
    """Remove images from the store, with all that was derived from them in it."""
    counts = {"images": body.images, "in_quarantine": body.in_quarantine}
    found = answers.withdraw(
        context.withdrawals, _request(body), body.reason, counts, context.picking()
    )
    return json_reply(found, 202)


@router.post("/withdrawals/finish", status_code=202, responses=documented(WithdrawalProgress, 202))
def finish(context: Context) -> Response:
    """Finish a withdrawal that was interrupted."""
    return json_reply(answers.finish(context.withdrawals), 202)


def _request(body: Withdrawn) -> WithdrawalRequest:
    return WithdrawalRequest(body.kind, body.value, body.issuer)
