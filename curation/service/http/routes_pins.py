"""Routes of pins and bans."""

from typing import Annotated

from fastapi import APIRouter, Body, Path
from fastapi.responses import Response

from echostill.curation.service.answers import pins as answers
from echostill.curation.service.http.context import Context
from echostill.curation.service.http.models.pins import Pin, PinList
from echostill.curation.service.http.replies import documented, json_reply
from echostill.curation.service.http.requests import PinBody, Signed

router = APIRouter(prefix="/v1", tags=["pins"], default_response_class=Response)


@router.get("/pins", responses=documented(PinList))
def pins(context: Context, history: bool = False) -> Response:
    """Pins and bans, newest first; with `history` the removed ones too."""
    return json_reply(answers.pin_list(context.state, history))


@router.post("/pins", status_code=201, responses=documented(Pin, 201))
def pin(context: Context, body: PinBody) -> Response:
    """Pin or ban images or a cluster: the next selection applies it."""
    cluster = (body.cluster.coreset, body.cluster.cluster) if body.cluster else None
    made = answers.add_pin(
        context.state, body.action, body.images, cluster, body.author, body.reason
    )
    return json_reply(made, 201, {"Location": f"/v1/pins/{made['id']}"})


@router.delete("/pins/{pin_id}", responses=documented(Pin))
def unpin(
    context: Context,
    pin_id: Annotated[str, Path(max_length=100)],
    body: Annotated[Signed, Body()],
) -> Response:
    """Remove a pin or ban; the table keeps both entries."""
    return json_reply(answers.remove_pin(context.state, pin_id, body.author, body.reason))
