"""Answers about images: details, explanation, neighbours."""

from typing import Any, Literal

from echostill.curation.service.http.models.base import Answer, OpenAnswer
from echostill.curation.service.http.models.pins import Pin
from echostill.curation.service.http.models.samples import Sample


class PoolRow(OpenAnswer):
    """An image's row of the pool, without pixels."""

    row: int
    image_id: str
    group_id: str
    source: str
    organ: str
    device: str
    label: str
    frame: int
    width: int
    height: int


class CoresetRow(OpenAnswer):
    """An image's row of a coreset."""

    name: str
    cluster: int
    cluster_size: int
    cluster_rank: int
    distance: float | None
    distance_rank: int
    gradient: float | None
    gradient_rank: int
    dual_rank: float | None
    quota: int
    selected: bool
    reason: str


class Neighbouring(Answer):
    """An image next to the boundary between selected and not selected in a cluster."""

    image_id: str
    cluster_rank: int
    dual_rank: float | None


class Explanation(OpenAnswer):
    """Why an image is selected or not, in numbers."""

    last_chosen: Neighbouring | None = None
    next_not_chosen: Neighbouring | None = None


class Why(Answer):
    """Why an image is selected or not, in words and in numbers."""

    text: str
    values: Explanation


class ImageDetails(Answer):
    """Everything about one image; ``image`` is null if it is known only to the quarantine."""

    image: PoolRow | None
    scores: dict[str, Any] | None
    coreset: CoresetRow | None
    why: Why
    pins: list[Pin]


class Neighbour(Answer):
    """An image and the cosine similarity of its feature."""

    similarity: float
    sample: Sample


class NeighbourList(Answer):
    """The nearest images, most similar first."""

    items: list[Neighbour]
    approximate: Literal[True]
