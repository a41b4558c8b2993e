"""Routes of frames that were held back for review."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response

from echostill.curation.service.answers import review as answers
from echostill.curation.service.data.review import FACETS, ReviewFilter
from echostill.curation.service.http.context import Context
from echostill.curation.service.http.models.base import IMAGE_ID
from echostill.curation.service.http.models.review import Decided, ReviewList
from echostill.curation.service.http.replies import documented, files, json_reply
from echostill.curation.service.http.requests import ReviewBody

router = APIRouter(prefix="/v1/review", tags=["review"], default_response_class=Response)

Values = Annotated[list[str] | None, Query(max_length=100)]
Score = Annotated[float, Query(ge=0, le=1, allow_inf_nan=False)]


@router.get("", responses=documented(ReviewList))
def review(
    context: Context,
    state: Values = None,
    reason: Values = None,
    organ: Values = None,
    device: Values = None,
    group_id: Values = None,
    least: Score = 0.0,
    most: Score = 1.0,
    sort: Annotated[str, Query(max_length=50, examples=["-score"])] = "group_id",
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 60,
) -> Response:
    """Frames that de-identification held back, with the decisions on them."""
    chosen = (state, reason, organ, device, group_id)
    choices = {name: tuple(values or ()) for name, values in zip(FACETS, chosen, strict=True)}
    wanted = ReviewFilter(choices, least, most)
    return json_reply(answers.review_list(context.review, wanted, sort, offset, limit))


@router.get("/{image_id}/picture", responses=files("image/png"))
def picture(
    context: Context, image_id: Annotated[str, Path(max_length=200, examples=[IMAGE_ID])]
) -> Response:
    """The frame before and after cleaning, side by side. It is identifiable: no one may keep it."""
    data = answers.review_picture(context.review, image_id)
    return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})


@router.post("/decisions", status_code=201, responses=documented(Decided, 201))
def decide(context: Context, body: ReviewBody) -> Response:
    """Approve frames, reject them, or take that back: by ids, or all that a filter shows."""
    shown = body.filter
    wanted = None
    if shown is not None:
        wanted = ReviewFilter(shown.model_dump(include=set(FACETS)), shown.least, shown.most)
    made = answers.decide(
        context.state.store,
        context.review,
        body.decision,
        images=body.images,
        wanted=wanted,
        expected=None if shown is None else shown.frames,
        author=body.author,
        reason=body.reason,
    )
    return json_reply(made, 201)
