"""Answers about the pool and its coresets."""

from typing import Any

from pydantic import Field

from echostill.curation.service.http.models.base import Answer, Count
from echostill.curation.service.http.models.health import IndexState, MapState
from echostill.curation.service.http.models.pins import PinCounts
from echostill.curation.service.http.models.samples import Sample


class Quarantined(Answer):
    """Rows in quarantine by stage."""

    ingest: int
    score: int


class Pool(Answer):
    """What the store contains."""

    version: str
    store: str
    images: int
    scored: int
    dimension: int | None
    quarantined: Quarantined
    organs: list[Count]
    devices: list[Count]
    labels: list[Count]
    coresets: list[str]
    index: IndexState
    map: MapState
    pins: PinCounts


class CoresetSummary(Answer):
    """A coreset in the list of coresets."""

    name: str = Field(examples=["default"])
    images: int
    budget: int | None
    clusters: int | None
    method: str | None
    seed: int | None
    digest: str
    created: str


class CoresetList(Answer):
    """The coresets, newest first."""

    items: list[CoresetSummary]


class File(Answer):
    """A file of a table."""

    file: str
    rows: int
    bytes: int
    sha256: str


class CoresetDetails(CoresetSummary):
    """How a coreset was picked, and its files."""

    configuration: dict[str, Any]
    fingerprint: dict[str, Any]
    files: list[File]


class Share(Answer):
    """A value of a column: images of the pool, selected ones, and their share."""

    value: str
    images: int
    selected: int
    share: float


class Shares(Answer):
    """Shares by organ, device and label."""

    organ: list[Share]
    device: list[Share]
    label: list[Share]


class GroupCounts(Answer):
    """Numbers of groups."""

    pool: int
    selected: int


class ClusterSizes(Answer):
    """Numbers and sizes of clusters."""

    count: int
    smallest: int
    median: float
    largest: int
    without_selected: int


class Histogram(Answer):
    """Counts in equal bins; there is one more edge than bins."""

    edges: list[float]
    pool: list[int]
    selected: list[int]


class Histograms(Answer):
    """Histograms of three columns."""

    distance: Histogram
    gradient: Histogram
    dual_rank: Histogram


class Stats(Answer):
    """Numbers about a coreset."""

    name: str
    images: int
    selected: int
    groups: GroupCounts
    by: Shares
    clusters: ClusterSizes
    histograms: Histograms


class SelectedCounts(Answer):
    """Numbers of selected images in two coresets."""

    a: int
    b: int


class Shift(Answer):
    """A value of a column: selected images in two coresets, and how the share shifted."""

    value: str | int
    images: int
    a: int
    b: int
    share_a: float
    share_b: float
    shift: float


class Shifts(Answer):
    """Shifts by organ, device and cluster, the largest first."""

    organ: list[Shift]
    device: list[Shift]
    cluster: list[Shift]


class Comparison(Answer):
    """Two coresets side by side."""

    a: str
    b: str
    selected: SelectedCounts
    both: int
    only_a: int
    only_b: int
    jaccard: float
    entered: list[str]
    left: list[str]
    by: Shifts
    text: str


class ClusterSummary(Answer):
    """A cluster; ``typical`` is the image nearest to the centroid."""

    cluster: int
    size: int
    quota: int
    selected: int
    mean_distance: float | None
    typical: str
    organs: list[Count]


class ClusterPage(Answer):
    """A page of clusters; ``next`` is the cursor of the next one."""

    items: list[ClusterSummary]
    total: int
    next: str | None


class ClusterDetails(ClusterSummary):
    """A cluster with its first members."""

    devices: list[Count]
    members: list[Sample]
