"""Routes of coresets, their samples, clusters and comparison, and of picking."""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query
from fastapi.responses import Response, StreamingResponse

from echostill.curation.selection.clustering import cluster_count
from echostill.curation.selection.settings import resolve_budget
from echostill.curation.selection.stage import SelectConfig
from echostill.curation.service.answers import exports
from echostill.curation.service.answers import images as answers
from echostill.curation.service.data.pages import Question, bounds, check_sort, page
from echostill.curation.service.http.replies import AtDesk, CoresetName, Desk, example, json_reply
from echostill.curation.service.http.requests import (
    JOB,
    NAME_PATTERN,
    PAGE,
    SAMPLE,
    open_keys,
    selection_schema,
)
from echostill.curation.service.problems import conflict
from echostill.platform.config import result_relevant, validate
from echostill.platform.errors import UsageError, nearest

router = APIRouter(prefix="/v1", tags=["coresets"])

Name = Annotated[str, Path(max_length=200, description="Name of a coreset.", examples=["default"])]
Texts = Annotated[list[str], Query(max_length=100)]
Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the page before.")]
Selected = Literal["true", "false", "any"]


@router.get("/pool", responses=example({"version": "0.1.0", "images": 1034, "scored": 1034}))
def pool(desk: AtDesk) -> Response:
    """What the store holds."""
    return json_reply(answers.pool_overview(desk.state))


@router.get("/coresets", responses=example({"items": [{"name": "default", "budget": 300}]}))
def coresets(desk: AtDesk) -> Response:
    """The coresets, newest first."""
    desk.state.refresh()
    return json_reply({"items": answers.coreset_list(desk.state)})


@router.get("/selection", responses=example({"type": "object", "properties": {}}))
def selection() -> Response:
    """The JSON schema of a request for a coreset."""
    return json_reply(selection_schema())


@router.post("/coresets", status_code=202, responses=example(JOB, 202))
def pick(
    desk: AtDesk,
    request: Annotated[
        dict[str, Any],
        Body(
            examples=[{"name": "half", "budget": 0.5, "method": "dual-rank", "seed": 1}],
            description="The keys of `echostill select`; GET /v1/selection lists them.",
        ),
    ],
) -> Response:
    """Pick a coreset in the background."""
    config = _checked(desk, request)
    existing = desk.state.entries.get(config.name)
    if existing is not None:
        wanted = {**result_relevant(config)}
        changed = [key for key, value in wanted.items() if existing.configuration.get(key) != value]
        if changed:
            raise conflict(
                f"there is a coreset '{config.name}' picked with other keys "
                f"({', '.join(changed[:5])}): choose another name."
            )
    job = desk.jobs.add(config, request)
    return json_reply(job.as_dict(), 202, {"Location": f"/v1/jobs/{job.id}"})


def _checked(desk: Desk, request: dict[str, Any]) -> SelectConfig:
    known = open_keys()
    for key in request:
        if key not in known:
            raise UsageError(f"unknown key '{key[:100]}'.{nearest(key, known)}")
    name = request.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            "key 'name': letters, digits, dots, dashes and underscores, at most 64 and the first a "
            "letter or digit."
        )
    config = validate(SelectConfig, {**request, "store": desk.state.store.root})
    rows = desk.state.store.open_scores().rows
    resolve_budget(config.budget, rows)
    cluster_count(rows, config.clusters)
    return config


@router.get("/jobs", responses=example({"items": [JOB]}))
def jobs(desk: AtDesk) -> Response:
    """The latest picks, newest first."""
    return json_reply({"items": [job.as_dict() for job in desk.jobs.latest()]})


@router.get("/jobs/{job_id}", responses=example(JOB))
def job(desk: AtDesk, job_id: Annotated[str, Path(max_length=100)]) -> Response:
    """One pick and how far it is."""
    return json_reply(desk.jobs.get(job_id).as_dict())


@router.delete("/jobs/{job_id}", responses=example({**JOB, "state": "cancelled"}))
def cancel(desk: AtDesk, job_id: Annotated[str, Path(max_length=100)]) -> Response:
    """Cancel a pick."""
    return json_reply(desk.jobs.cancel(job_id).as_dict())


@router.get("/coresets/{name}", responses=example({"name": "default", "budget": 300}))
def coreset(desk: AtDesk, name: Name) -> Response:
    """One coreset: how it was picked, and its files."""
    return json_reply(answers.clean(answers.coreset_details(desk.state, name)))


@router.get("/coresets/{name}/samples", responses=example(PAGE))
def samples(
    desk: AtDesk,
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
    """The coreset's samples: filtered, sorted, by pages."""
    question = _question(selected, organ, device, label, group_id, cluster, source, min, max, sort)
    found = page(desk.state.coreset(name), desk.finder, question, limit, cursor)
    found["items"] = answers.with_pins(desk.state, found["items"])
    return json_reply(found)


def _question(
    selected: str,
    organ: list[str],
    device: list[str],
    label: list[str],
    group_id: list[str],
    cluster: list[int],
    source: str,
    least: list[str],
    most: list[str],
    sort: str,
) -> Question:
    return Question(
        selected=selected,
        organ=tuple(sorted(organ)),
        device=tuple(sorted(device)),
        label=tuple(sorted(label)),
        group_id=tuple(sorted(group_id)),
        cluster=tuple(sorted(cluster)),
        source=source,
        least=bounds(least),
        most=bounds(most),
        sort=check_sort(sort),
    )


@router.get("/coresets/{name}/stats", responses=example({"name": "default", "selected": 300}))
def stats(desk: AtDesk, name: Name) -> Response:
    """Numbers about a coreset: shares of organs and devices, clusters, histograms."""
    return json_reply(answers.clean(desk.state.coreset(name).stats))


@router.get(
    "/coresets/{name}/export",
    responses={200: {"content": {kind: {} for kind in exports.MEDIA_TYPES.values()}}},
)
def export(
    desk: AtDesk,
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
    """All of it as one file: Parquet, CSV or JSON lines."""
    question = _question(
        selected, organ, device, label, group_id, cluster, source, min, max, "image_id"
    )
    found = desk.state.coreset(name)
    pieces = exports.export(found, desk.finder.find(found, question), format)
    headers = {"Content-Disposition": f'attachment; filename="{name}.{format}"'}
    return StreamingResponse(pieces, media_type=exports.MEDIA_TYPES[format], headers=headers)


@router.get("/compare", responses=example({"both": 290, "only_a": 10, "only_b": 227}))
def compare(
    desk: AtDesk,
    a: Annotated[str, Query(max_length=200, examples=["default"])],
    b: Annotated[str, Query(max_length=200, examples=["half"])],
    limit: Annotated[int, Query(ge=0, le=10_000)] = 100,
) -> Response:
    """Two coresets side by side."""
    return json_reply(answers.clean(answers.compare(desk.state, a, b, limit)))


@router.get("/clusters", responses=example({"items": [{"cluster": 7, "size": 41}]}))
def clusters(
    desk: AtDesk,
    coreset: CoresetName = None,
    sort: Annotated[str, Query(max_length=50)] = "cluster",
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    cursor: Cursor = None,
) -> Response:
    """A coreset's clusters."""
    return json_reply(answers.cluster_page(desk.state.coreset(coreset), sort, limit, cursor))


@router.get(
    "/clusters/{cluster}", responses=example({"cluster": 7, "size": 41, "members": [SAMPLE]})
)
def cluster(
    desk: AtDesk,
    cluster: Annotated[int, Path(ge=-(2**31), le=2**31 - 1)],
    coreset: CoresetName = None,
) -> Response:
    """One cluster and its first members."""
    found = desk.state.coreset(coreset)
    return json_reply(answers.cluster_answer(desk.state, found, cluster))
