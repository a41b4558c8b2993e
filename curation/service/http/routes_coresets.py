"""Routes of the pool and its coresets: samples, clusters, comparison, export."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response, StreamingResponse

from echostill.curation.service.answers import coresets as answers
from echostill.curation.service.answers import exports, samples
from echostill.curation.service.data.pages import sample_query
from echostill.curation.service.http.context import Context, CoresetName
from echostill.curation.service.http.models.coresets import (
    ClusterDetails,
    ClusterPage,
    Comparison,
    CoresetDetails,
    CoresetList,
    Pool,
    Stats,
)
from echostill.curation.service.http.models.samples import SamplePage
from echostill.curation.service.http.replies import documented, files, json_reply
from echostill.curation.service.parameters import DirectRoute

router = APIRouter(
    prefix="/v1", tags=["coresets"], default_response_class=Response, route_class=DirectRoute
)

Name = Annotated[str, Path(max_length=200, description="Name of a coreset.", examples=["default"])]
Texts = Annotated[list[str], Query(max_length=100)]
Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the previous page.")]
Selected = Literal["true", "false", "any"]


@router.get("/pool", responses=documented(Pool))
def pool(context: Context) -> Response:
    """What the store contains."""
    return json_reply(answers.pool_overview(context.state))


@router.get("/coresets", responses=documented(CoresetList))
def coresets(context: Context) -> Response:
    """The coresets, newest first."""
    context.state.refresh()
    return json_reply(answers.coreset_list(context.state))


@router.get("/coresets/{name}", responses=documented(CoresetDetails))
def coreset(context: Context, name: Name) -> Response:
    """One coreset: how it was picked, and its files."""
    return json_reply(answers.coreset_details(context.state, name))


@router.get("/coresets/{name}/samples", responses=documented(SamplePage))
def coreset_samples(
    context: Context,
    name: Name,
    selected: Selected = "true",
    organ: Texts = [],  # noqa: B006 (FastAPI copies defaults)
    device: Texts = [],  # noqa: B006
    label: Texts = [],  # noqa: B006
    group_id: Texts = [],  # noqa: B006
    cluster: Annotated[list[int], Query(max_length=100)] = [],  # noqa: B006
    source: Annotated[str, Query(max_length=500)] = "",
    min: Annotated[Texts, Query(examples=["distance:0.2"])] = [],  # noqa: B006
    max: Annotated[Texts, Query(examples=["dual_rank:0.5"])] = [],  # noqa: B006
    sort: Annotated[str, Query(max_length=50)] = "image_id",
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    cursor: Cursor = None,
) -> Response:
    """The coreset's samples: filtered, sorted, in pages."""
    query = sample_query(
        selected=selected,
        organ=organ,
        device=device,
        label=label,
        group_id=group_id,
        cluster=cluster,
        source=source,
        min=min,
        max=max,
        sort=sort,
    )
    return json_reply(
        samples.sample_page(context.state, context.finder, name, query, limit, cursor)
    )


@router.get("/coresets/{name}/stats", responses=documented(Stats))
def stats(context: Context, name: Name) -> Response:
    """Numbers about a coreset: shares of organs and devices, clusters, histograms."""
    return json_reply(answers.coreset_stats(context.state, name))


@router.get("/coresets/{name}/export", responses=files(*exports.MEDIA_TYPES.values()))
def export(
    context: Context,
    name: Name,
    format: Literal["parquet", "csv", "jsonl"] = "parquet",
    selected: Selected = "true",
    organ: Texts = [],  # noqa: B006
    device: Texts = [],  # noqa: B006
    label: Texts = [],  # noqa: B006
    group_id: Texts = [],  # noqa: B006
    cluster: Annotated[list[int], Query(max_length=100)] = [],  # noqa: B006
    source: Annotated[str, Query(max_length=500)] = "",
    min: Texts = [],  # noqa: B006
    max: Texts = [],  # noqa: B006
) -> Response:
    """All matching samples as one file: Parquet, CSV or JSON lines."""
    query = sample_query(
        selected=selected,
        organ=organ,
        device=device,
        label=label,
        group_id=group_id,
        cluster=cluster,
        source=source,
        min=min,
        max=max,
    )
    pieces = exports.export_pieces(context.state, context.finder, name, query, format)
    headers = {"Content-Disposition": f'attachment; filename="{name}.{format}"'}
    return StreamingResponse(pieces, media_type=exports.MEDIA_TYPES[format], headers=headers)


@router.get("/compare", responses=documented(Comparison))
def compare(
    context: Context,
    a: Annotated[str, Query(max_length=200, examples=["default"])],
    b: Annotated[str, Query(max_length=200, examples=["half"])],
    limit: Annotated[int, Query(ge=0, le=10_000)] = 100,
) -> Response:
    """Two coresets side by side."""
    return json_reply(answers.compare_coresets(context.state, a, b, limit))


@router.get("/clusters", responses=documented(ClusterPage))
def clusters(
    context: Context,
    coreset: CoresetName = None,
    sort: Annotated[str, Query(max_length=50)] = "cluster",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    cursor: Cursor = None,
) -> Response:
    """A coreset's clusters, in pages."""
    return json_reply(answers.cluster_page(context.state, coreset, sort, limit, cursor))


@router.get("/clusters/{cluster}", responses=documented(ClusterDetails))
def cluster(
    context: Context,
    cluster: Annotated[int, Path(ge=-(2**31), le=2**31 - 1)],
    coreset: CoresetName = None,
) -> Response:
    """One cluster and its first members."""
    return json_reply(answers.cluster_details(context.state, coreset, cluster))
