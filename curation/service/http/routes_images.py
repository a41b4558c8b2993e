"""Routes of images: details, pictures, neighbours, and the map."""

from typing import Annotated, Literal

import anyio.to_thread
import pyarrow as pa
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from echostill.curation.service.answers import images as answers
from echostill.curation.service.answers import neighbours as near
from echostill.curation.service.answers.map import map_table, map_version
from echostill.curation.service.answers.uploads import FORMATS
from echostill.curation.service.data.thumbnails import MEDIA_TYPES
from echostill.curation.service.http.context import Context, CoresetName
from echostill.curation.service.http.models.base import IMAGE_ID
from echostill.curation.service.http.models.images import ImageDetails, NeighbourList
from echostill.curation.service.http.models.samples import SampleList
from echostill.curation.service.http.replies import (
    ARROW,
    NOT_MODIFIED,
    cache_headers,
    documented,
    entity_tag,
    files,
    json_reply,
    not_modified,
)
from echostill.curation.service.http.requests import LookupBody
from echostill.curation.service.parameters import DirectRoute

router = APIRouter(
    prefix="/v1", tags=["images"], default_response_class=Response, route_class=DirectRoute
)

ImageId = Annotated[str, Path(max_length=200, examples=[IMAGE_ID])]
Count = Annotated[int, Query(ge=1, le=200)]
Selected = Literal["true", "false", "any"]
UPLOAD = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in FORMATS}


@router.get("/images", responses=documented(SampleList))
def images(
    context: Context,
    q: Annotated[str, Query(max_length=500, examples=["0064"])],
    coreset: CoresetName = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
    unique: Annotated[
        bool, Query(description="Only the one image that `q` means; 422 if none or several.")
    ] = False,
) -> Response:
    """Find images by the beginning of an id, or by text in a source."""
    return json_reply(answers.search_images(context.state, q, limit, coreset, unique))


@router.post("/images/lookup", responses=documented(SampleList))
def lookup(context: Context, body: LookupBody) -> Response:
    """Samples by their rows in the map, then by ids, in the order given."""
    return json_reply(answers.look_up(context.state, body.rows, body.ids, body.coreset))


@router.get("/images/{image_id}", responses=documented(ImageDetails))
def image(context: Context, image_id: ImageId, coreset: CoresetName = None) -> Response:
    """Everything about one image: origin, scores, ranks, and why it is selected or not."""
    return json_reply(answers.image_details(context.state, image_id, coreset))


@router.get(
    "/images/{image_id}/thumbnail", responses={**files(*MEDIA_TYPES.values()), **NOT_MODIFIED}
)
def thumbnail(
    context: Context,
    request: Request,
    image_id: ImageId,
    size: Annotated[int, Query(ge=16, le=1024)] = 160,
    format: Literal["jpeg", "png"] = "jpeg",
) -> Response:
    """The staged picture, its longest side at most `size` pixels."""
    row = context.state.row(image_id)
    tag = entity_tag(f"{context.state.derived.key} {row} {size} {format}")
    known = not_modified(request, tag)
    if known is not None:
        return known
    data = answers.thumbnail(context.state, row, size, format)
    return Response(data, media_type=MEDIA_TYPES[format], headers=cache_headers(tag))


@router.get("/images/{image_id}/neighbours", responses=documented(NeighbourList))
def neighbours(
    context: Context,
    image_id: ImageId,
    k: Count = 10,
    coreset: CoresetName = None,
    selected: Selected = "any",
    same_group: bool = True,
) -> Response:
    """The images whose features are nearest to those of one image."""
    return json_reply(
        near.neighbours_of_image(context.state, image_id, k, coreset, selected, same_group)
    )


@router.post(
    "/neighbours",
    responses=documented(NeighbourList),
    openapi_extra={"requestBody": {"required": True, "content": UPLOAD}},
)
async def neighbours_of_upload(
    context: Context,
    request: Request,
    k: Count = 10,
    coreset: CoresetName = None,
    selected: Selected = "any",
) -> Response:
    """The images nearest to an uploaded one, which is not stored."""
    data = await request.body()
    content_type = request.headers.get("content-type", "")

    def answer() -> Response:
        return json_reply(
            near.neighbours_of_upload(
                context.state, context.teacher, data, content_type, k, coreset, selected
            )
        )

    return await anyio.to_thread.run_sync(answer)


@router.get("/map", responses={**files(ARROW), **NOT_MODIFIED})
def map_(
    context: Context,
    request: Request,
    coreset: CoresetName = None,
    sample: Annotated[int | None, Query(ge=1, le=2**31)] = None,
) -> Response:
    """Coordinates, cluster and selection of every scored image, as an Arrow stream."""
    shown = context.state.default_coreset(coreset)
    tag = entity_tag(map_version(context.state, shown, sample))
    known = not_modified(request, tag)
    if known is not None:
        return known
    table = map_table(context.state, shown, sample)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    return Response(memoryview(sink.getvalue()), media_type=ARROW, headers=headers)
