"""Routes of health and metrics."""

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import generate_latest

from echostill.curation.service.http.context import Context
from echostill.curation.service.http.models.health import Health, Starting
from echostill.curation.service.http.replies import documented, files, json_reply

router = APIRouter(tags=["health"], default_response_class=Response)


@router.get("/healthz", responses=documented(Health))
def healthz() -> Response:
    """Whether the process runs."""
    return json_reply({"status": "ok"})


@router.get("/readyz", responses={**documented(Health), **documented(Starting, 503)})
def readyz(context: Context) -> Response:
    """Whether every request can be answered."""
    if context.state.ready:
        return json_reply({"status": "ok"})
    index = context.state.preparation.as_dict()
    return json_reply({"status": "starting", "index": index}, status=503)


@router.get("/metrics", responses=files("text/plain"))
def metrics(context: Context) -> Response:
    """Metrics for Prometheus."""
    context.measure()
    return Response(generate_latest(context.meters.registry), media_type="text/plain")
