"""Routes of what the store holds under names: coresets, runs, reports, teacher caches, sweeps."""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Query
from fastapi.responses import Response

from echostill.curation.service.answers import holdings as answers
from echostill.curation.service.http.context import Context
from echostill.curation.service.http.models.holdings import (
    Collected,
    Deletion,
    HeldResult,
    HeldResults,
    WasteList,
)
from echostill.curation.service.http.replies import documented, json_reply
from echostill.curation.service.http.requests import NewName, WasteBody

router = APIRouter(prefix="/v1", tags=["holdings"], default_response_class=Response)

Folder = Literal["coresets", "runs", "reports", "teacher-cache", "sweeps"]
HeldName = Annotated[str, Path(max_length=200, examples=["half"])]


@router.get("/holdings", responses=documented(HeldResults))
def held_results(
    context: Context,
    kind: Annotated[Folder | None, Query(description="Only those of one kind.")] = None,
) -> Response:
    """What the store holds under names: size, date, what it was made from, what uses it."""
    return json_reply(answers.holding_list(context.state, kind))


@router.delete("/holdings/{kind}/{name}", responses=documented(Deletion))
def delete(
    context: Context,
    kind: Folder,
    name: HeldName,
    dry_run: Annotated[bool, Query(description="Only say what would be deleted.")] = False,
    force: Annotated[
        bool, Query(description="Although others were made from it; these stay.")
    ] = False,
) -> Response:
    """Delete a named result that nothing else was made from. Records in MLflow stay."""
    picking = context.picking()
    return json_reply(
        answers.delete_holding(
            context.state, f"{kind}/{name}", picking=picking, dry_run=dry_run, force=force
        )
    )


@router.post("/holdings/{kind}/{name}/name", responses=documented(HeldResult))
def rename(
    context: Context, kind: Folder, name: HeldName, body: Annotated[NewName, Body()]
) -> Response:
    """Rename a coreset, report or teacher cache; what was made from it is known by content."""
    picking = context.picking()
    return json_reply(answers.rename_holding(context.state, f"{kind}/{name}", body.name, picking))


@router.get("/waste", responses=documented(WasteList))
def waste(context: Context) -> Response:
    """What the store does not need: staged images, unfinished and outdated results."""
    return json_reply(answers.waste_list(context.state, context.picking()))


@router.delete("/waste", responses=documented(Collected))
def collect(context: Context, body: Annotated[WasteBody, Body()]) -> Response:
    """Delete some of what the store does not need."""
    return json_reply(answers.collect(context.state, body.places, context.picking()))
