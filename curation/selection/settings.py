"""Settings of a selection, and the limits on a method's operations and memory."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from echostill.curation.selection.clustering import ClusteringSettings, cluster_count
from echostill.curation.selection.methods import METHODS, Method
from echostill.curation.selection.methods.ccs import CcsSettings
from echostill.curation.selection.methods.hierarchy import HierarchySettings
from echostill.curation.selection.methods.prototypes import PrototypeSettings
from echostill.curation.selection.methods.similarity import GraphSettings
from echostill.curation.selection.quotas import Rule
from echostill.curation.selection.ranking import Fusion
from echostill.platform.config import execution
from echostill.platform.errors import UsageError, nearest
from echostill.platform.memory import available_memory
from echostill.platform.tables.schemas import QUALITY_ISSUES
from echostill.platform.tables.store import describe_bytes


class SelectionSettings(ClusteringSettings):
    """How a coreset is chosen."""

    budget: int | float = Field(
        0.1, description="Images to choose: an integer, or a fraction of the pool (0.1 is 10%)."
    )
    method: str = Field(
        "coverage",
        description=f"How images are chosen: {', '.join(METHODS)}. See selection.md.",
    )
    blocked: bool | None = Field(
        None,
        description="Choose inside clusters, each with its quota (true), or over the whole pool at "
        "once (false); null is the default of the method.",
    )
    quota: Literal["auto", "proportional", "square-root", "water-filling"] = Field(
        "auto",
        description="Quotas of clusters, for methods that choose inside clusters: proportional to "
        "their sizes or to the square roots of these, or equal. 'auto' is proportional, and the "
        "tree of clusters for method 'hierarchical'.",
    )
    balance: str | None = Field(
        None,
        description="A column of the pool (organ, device, ...): the budget is divided among its "
        "values first. Images without a value form a group of their own.",
    )
    balance_quota: Rule = Field(
        "water-filling", description="Rule for the shares of the values of `balance`."
    )
    max_per_group: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto",
        description="At most this many images of one patient, study or clip; null for any number. "
        "'auto' is null, and for method 'coverage' twice the smallest number with which the budget "
        "can be met, or the largest group's share of the budget, if that is more.",
    )
    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of the distance rank, or of the coverage with method 'coverage'; the "
        "quality rank gets the rest.",
    )
    rank_by: Literal["gradient", "beyond-pixels"] = Field(
        "gradient",
        description="What ranks images by quality: the gradient, or what of its rank brightness, "
        "contrast and four other statistics of the pixels do not explain.",
    )
    penalty: float = Field(
        0.0,
        ge=0,
        description="The gradient is its mean over snapshots minus penalty times its spread.",
    )
    fusion: Fusion = Field(
        "sum",
        description="How both ranks are combined: weighted sum, weighted geometric mean, the "
        "larger of the two, or the nearest of those whose gradient ranks high ('two-stage').",
    )
    gradient_keep: float = Field(
        0.5, gt=0, le=1, description="two-stage: share of a cluster, by gradient, that comes first."
    )
    trim: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="dual-rank: share of a cluster with the largest gradients that is chosen "
        "last; corrupt images are among them.",
    )
    flags_last: tuple[str, ...] = Field(
        ("blank", "dark", "saturated", "blurred", "low_information"),
        description="coverage: quality flags of ingest whose images are chosen last and need not "
        "be covered; empty for none.",
    )
    prototypes: PrototypeSettings = PrototypeSettings()
    ccs: CcsSettings = CcsSettings()
    graph: GraphSettings = GraphSettings()
    hierarchy: HierarchySettings = HierarchySettings()
    operation_limit: float = execution(
        3e14,
        "Largest number of floating-point operations; a method that needs more is an error before "
        "it starts. The default is about an hour on two cores.",
        gt=0,
    )

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise UsageError(
                f"no selection method '{name}'.{nearest(name, METHODS)} Expected one of: "
                f"{', '.join(METHODS)}."
            )
        return name

    @field_validator("flags_last")
    @classmethod
    def _known_flags(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in QUALITY_ISSUES:
                raise UsageError(
                    f"no quality flag '{name}'.{nearest(name, QUALITY_ISSUES)} Expected one of: "
                    f"{', '.join(QUALITY_ISSUES)}."
                )
        return names

    @model_validator(mode="after")
    def _fitting_keys(self) -> "SelectionSettings":
        if METHODS[self.method].tree and (self.quota != "auto" or self.blocked is False):
            raise UsageError(
                f"method '{self.method}' divides the budget down its tree of clusters: leave quota "
                "at 'auto' and blocked at null."
            )
        if self.quota != "auto" and not self.inside_clusters:
            raise UsageError(
                f"quota '{self.quota}' divides the budget among clusters, but method "
                f"'{self.method}' chooses over the whole pool: add blocked=true, or use "
                "balance_quota with balance."
            )
        return self

    @property
    def inside_clusters(self) -> bool:
        """Whether the method chooses inside clusters, each with its quota."""
        return METHODS[self.method].blocked if self.blocked is None else self.blocked

    @property
    def rule(self) -> Rule:
        """The rule for quotas."""
        return "proportional" if self.quota == "auto" else self.quota


def resolve_budget(budget: int | float, rows: int) -> int:
    """Convert a budget to a number of images; a fraction is rounded half up, to at least one image.

    Raises:
        UsageError: Below 1, above the pool's size, or a fraction outside (0, 1].
    """
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise UsageError(
                f"budget {budget} is not a valid fraction: expected 0 < budget <= 1.0 or an "
                f"integer from 1 to {rows} (the size of the pool)."
            )
        # Use the decimal as written: 0.1 means a tenth, not the nearest binary fraction.
        return max(1, int(Fraction(repr(budget)) * rows + Fraction(1, 2)))
    if not 1 <= budget <= rows:
        raise UsageError(
            f"budget {budget} is not valid: expected an integer from 1 to {rows} (the size of the "
            "pool) or 0 < budget <= 1.0."
        )
    return budget


def operations(settings: SelectionSettings, rows: int, dimension: int, blocked: bool) -> float:
    """Estimate a method's floating-point operations, assuming clusters of equal size."""
    method = METHODS[settings.method]
    if method.operations is None:
        return 0.0
    if not blocked:
        return method.operations(rows, dimension, resolve_budget(settings.budget, rows))
    # Inside a cluster every method computes all pairs once.
    clusters = cluster_count(rows, settings.clusters)
    return 2.0 * rows * rows / clusters * dimension


def check_limits(settings: SelectionSettings, rows: int, dimension: int) -> None:
    """Check that a method can process this many images, before anything is computed.

    Raises:
        UsageError: It cannot; the message gives the limit and the variant inside clusters.
    """
    method: Method = METHODS[settings.method]
    needed = operations(settings, rows, dimension, settings.inside_clusters)
    if needed > settings.operation_limit:
        raise UsageError(
            f"method '{settings.method}' over {rows} images of dimension {dimension} needs about "
            f"{needed:.1e} operations, above operation_limit {settings.operation_limit:.1e}. "
            f"{_way_out(settings, rows, dimension)}"
        )
    if method.memory is None or settings.inside_clusters:
        return
    memory, free = method.memory(rows, dimension), available_memory()
    if memory > free:
        raise UsageError(
            f"method '{settings.method}' over {rows} images of dimension {dimension} at once needs "
            f"about {describe_bytes(memory)} of memory, but {describe_bytes(free)} is free. "
            f"{_way_out(settings, rows, dimension)}"
        )


def _way_out(settings: SelectionSettings, rows: int, dimension: int) -> str:
    inside = operations(settings, rows, dimension, blocked=True)
    if not settings.inside_clusters and inside <= settings.operation_limit:
        return (
            f"Inside clusters, each with its quota, it needs about {inside:.1e} operations: add "
            "blocked=true."
        )
    return "Use more clusters, raise operation_limit, or use another method."
