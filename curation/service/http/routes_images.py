"""Routes of images, their pictures and neighbours, of the map, and of pins."""

import hashlib
from typing import Annotated, Literal

import pyarrow as pa
from fastapi import APIRouter, Body, Path, Query, Request
from fastapi.responses import Response

from echostill.curation.service.answers import images as answers
from echostill.curation.service.answers import neighbours as near
from echostill.curation.service.answers import pins as pin_answers
from echostill.curation.service.answers.uploads import FORMATS
from echostill.curation.service.data.thumbnails import MEDIA_TYPES
from echostill.curation.service.http.replies import (
    ARROW,
    AtDesk,
    CoresetName,
    arrow_example,
    cache_headers,
    example,
    json_reply,
    tagged,
)
from echostill.curation.service.http.requests import PIN, SAMPLE, LookupBody, PinBody, Signed

router = APIRouter(prefix="/v1", tags=["images"])

ImageId = Annotated[str, Path(max_length=200, examples=[SAMPLE["image_id"]])]
Count = Annotated[int, Query(ge=1, le=200)]
Selected = Literal["true", "false", "any"]
NEAR = {"items": [{"similarity": 0.991, "sample": SAMPLE}], "approximate": True}


@router.get("/images", responses=example({"items": [SAMPLE]}))
def images(
    desk: AtDesk,
    q: Annotated[str, Query(max_length=500, examples=["0064"])],
    coreset: CoresetName = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> Response:
    """Find images by the beginning of an id, or by text in a source."""
    rows = answers.search_images(desk.state, q, limit)
    shown = answers.default_coreset(desk.state, coreset)
    return json_reply({"items": answers.samples_of(desk.state, shown, rows)})


@router.post("/images/lookup", responses=example({"items": [SAMPLE]}))
def lookup(desk: AtDesk, body: LookupBody) -> Response:
    """Samples by their rows in the map, or by ids, in the order asked for."""
    rows = answers.lookup_rows(desk.state, body.rows, body.ids)
    shown = answers.default_coreset(desk.state, body.coreset)
    return json_reply({"items": answers.samples_of(desk.state, shown, rows)})


@router.get("/images/{image_id}", responses=example({"image": SAMPLE, "why": {"text": "..."}}))
def image(desk: AtDesk, image_id: ImageId, coreset: CoresetName = None) -> Response:
    """Everything about one image: where it is from, its scores, and why it is chosen or not."""
    return json_reply(pin_answers.with_acts(desk.state, image_id, coreset))


@router.get(
    "/images/{image_id}/thumbnail",
    responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}},
)
def thumbnail(
    desk: AtDesk,
    request: Request,
    image_id: ImageId,
    size: Annotated[int, Query(ge=16, le=1024)] = 160,
    format: Literal["jpeg", "png"] = "jpeg",
) -> Response:
    """The staged picture, at most so large."""
    row = answers.row_of(desk.state, image_id)
    name = f"{desk.state.derived.key} {row} {size} {format}"
    tag = f'"{hashlib.sha256(name.encode()).hexdigest()[:24]}"'
    held = tagged(request, tag)
    if held is not None:
        return held
    part, place = desk.state.catalogue.place(row)
    data = desk.state.thumbnails.picture(part, place, size, format)
    return Response(data, media_type=MEDIA_TYPES[format], headers=cache_headers(tag))


@router.get("/images/{image_id}/neighbours", responses=example(NEAR))
def neighbours(
    desk: AtDesk,
    image_id: ImageId,
    k: Count = 10,
    coreset: CoresetName = None,
    selected: Selected = "any",
    same_group: bool = True,
) -> Response:
    """The images whose features are nearest to those of one image."""
    row = answers.row_of(desk.state, image_id)
    vector = near.own_vector(desk.state, row)
    shown = answers.default_coreset(desk.state, coreset)
    items = near.neighbours_of(
        desk.state, vector, k, shown, selected, own_row=row, other_groups=not same_group
    )
    return json_reply({"items": items, "approximate": True})


@router.post(
    "/neighbours",
    responses=example(NEAR),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": {"type": "string", "format": "binary"}} for kind in FORMATS
            },
        }
    },
)
async def neighbours_of_upload(
    desk: AtDesk,
    request: Request,
    k: Count = 10,
    coreset: CoresetName = None,
    selected: Selected = "any",
) -> Response:
    """The images nearest to one that is sent; it is not kept."""
    import anyio.to_thread

    data = await request.body()
    kind = request.headers.get("content-type", "")

    def answer() -> Response:
        near.neighbour_index(desk.state)
        vector = desk.teacher.feature(data, kind)
        shown = answers.default_coreset(desk.state, coreset)
        items = near.neighbours_of(desk.state, vector, k, shown, selected)
        return json_reply({"items": items, "approximate": True})

    return await anyio.to_thread.run_sync(answer)


@router.get("/map", responses=arrow_example())
def map_(
    desk: AtDesk,
    request: Request,
    coreset: CoresetName = None,
    sample: Annotated[int | None, Query(ge=1, le=2**31)] = None,
) -> Response:
    """A place in the plane for every scored image, as an Arrow stream."""
    state = desk.state
    shown = answers.default_coreset(state, coreset)
    digest = shown.entry.table.digest if shown else ""
    acts = f"{len(state.pins.all)} {len(state.pins.acts)}"
    name = f"{state.derived.key} {digest} {acts} {sample} {state.places is None}"
    tag = f'"{hashlib.sha256(name.encode()).hexdigest()[:24]}"'
    held = tagged(request, tag)
    if held is not None:
        return held
    table = near.map_table(state, shown, sample)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    return Response(memoryview(sink.getvalue()), media_type=ARROW, headers=headers)


@router.get("/pins", tags=["pins"], responses=example({"items": [PIN]}))
def pins(desk: AtDesk, history: bool = False) -> Response:
    """Pins and bans, newest first."""
    return json_reply(pin_answers.pin_list(desk.state, history))


@router.post("/pins", tags=["pins"], status_code=201, responses=example(PIN, 201))
def pin(desk: AtDesk, body: PinBody) -> Response:
    """Pin or ban images or a cluster: the next selection respects it."""
    cluster = (body.cluster.coreset, body.cluster.cluster) if body.cluster else None
    made = pin_answers.pin_images(
        desk.state, body.action, body.images, cluster, body.author, body.reason
    )
    return json_reply(made, 201, {"Location": f"/v1/pins/{made['id']}"})


@router.delete("/pins/{pin_id}", tags=["pins"], responses=example({**PIN, "removed": {}}))
def unpin(
    desk: AtDesk, pin_id: Annotated[str, Path(max_length=100)], body: Annotated[Signed, Body()]
) -> Response:
    """Take a pin or ban back; the table keeps both lines."""
    return json_reply(pin_answers.unpin(desk.state, pin_id, body.author, body.reason))
