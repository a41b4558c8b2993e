"""Routes of picking coresets in the background."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path
from fastapi.responses import Response

from echostill.curation.selection.clustering import cluster_count
from echostill.curation.selection.settings import resolve_budget
from echostill.curation.selection.stage import SelectConfig
from echostill.curation.service.answers import estimates
from echostill.curation.service.http.context import Context, ServiceContext
from echostill.curation.service.http.models.jobs import Estimate, Job, JobList, Selection
from echostill.curation.service.http.replies import documented, json_reply
from echostill.curation.service.http.requests import NAME_PATTERN, open_keys, selection_schema
from echostill.curation.service.problems import conflict
from echostill.platform.config import result_relevant, validate
from echostill.platform.errors import UsageError, nearest

router = APIRouter(prefix="/v1", tags=["coresets"], default_response_class=Response)

Keys = Body(
    examples=[{"name": "half", "budget": 0.5, "method": "dual-rank", "seed": 1}],
    description="The keys of `echostill select`; GET /v1/selection lists them.",
)
JobId = Annotated[str, Path(max_length=100)]


@router.get("/selection", responses=documented(Selection))
def selection() -> Response:
    """The JSON schema of a request for a coreset."""
    return json_reply(selection_schema())


@router.post("/selection/estimate", responses=documented(Estimate))
def estimate(context: Context, request: Annotated[dict[str, Any], Keys]) -> Response:
    """What a selection of these keys would give, about; nothing is picked."""
    config = _validated(context, {"name": "estimate", **request})
    picks = [(job.started, job.finished) for job in context.jobs.latest() if job.is_done]
    return json_reply(estimates.estimate(context.state, config, picks))


@router.post("/coresets", status_code=202, responses=documented(Job, 202))
def pick(context: Context, request: Annotated[dict[str, Any], Keys]) -> Response:
    """Pick a coreset in the background."""
    config = _checked(context, request)
    existing = context.state.entries.get(config.name)
    if existing is not None:
        wanted = {**result_relevant(config)}
        changed = [key for key, value in wanted.items() if existing.configuration.get(key) != value]
        if changed:
            raise conflict(
                f"a coreset '{config.name}' already exists, picked with other values of "
                f"{', '.join(changed[:5])}: choose another name."
            )
    job = context.jobs.add(config, request)
    return json_reply(job.as_dict(), 202, {"Location": f"/v1/jobs/{job.id}"})


def _checked(context: ServiceContext, request: dict[str, Any]) -> SelectConfig:
    config = _validated(context, request)
    name = request.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            "key 'name': expected 1 to 64 letters, digits, dots, dashes and underscores, the first "
            "one a letter or digit."
        )
    rows = context.state.store.open_scores().rows
    resolve_budget(config.budget, rows)
    cluster_count(rows, config.clusters)
    return config


def _validated(context: ServiceContext, request: dict[str, Any]) -> SelectConfig:
    known = open_keys()
    for key in request:
        if key not in known:
            raise UsageError(f"unknown key '{key[:100]}'.{nearest(key, known)}")
    return validate(SelectConfig, {**request, "store": context.state.store.root})


@router.get("/jobs", responses=documented(JobList))
def jobs(context: Context) -> Response:
    """The latest jobs, newest first."""
    return json_reply({"items": [job.as_dict() for job in context.jobs.latest()]})


@router.get("/jobs/{job_id}", responses=documented(Job))
def job(context: Context, job_id: JobId) -> Response:
    """One job and its progress."""
    return json_reply(context.jobs.get(job_id).as_dict())


@router.delete("/jobs/{job_id}", responses=documented(Job))
def cancel(context: Context, job_id: JobId) -> Response:
    """Cancel a job."""
    return json_reply(context.jobs.cancel(job_id).as_dict())
