"""The selection methods, each one function of a block of rows; see ``curation.selection``."""

from echostill.curation.selection.methods.block import Block, Method, Pool
from echostill.curation.selection.methods.ccs import ccs
from echostill.curation.selection.methods.coverage import coverage
from echostill.curation.selection.methods.coverage import operations as cell_by_cell
from echostill.curation.selection.methods.d2 import d2
from echostill.curation.selection.methods.draws import random
from echostill.curation.selection.methods.facility_location import facility_location
from echostill.curation.selection.methods.herding import herding
from echostill.curation.selection.methods.hierarchy import in_leaf
from echostill.curation.selection.methods.k_center import k_center
from echostill.curation.selection.methods.prototypes import ssl_prototypes
from echostill.curation.selection.methods.ranks import dual_rank, far, gradient, moderate, near

__all__ = ["METHODS", "Block", "Method", "Pool"]

MEMORY_BOUND = 16  # a matrix-vector product is limited by memory bandwidth, not by the processor


def _one_by_one(rows: int, dimension: int, count: int) -> float:
    return 2.0 * rows * count * dimension * MEMORY_BOUND


def _all_pairs(rows: int, dimension: int, count: int) -> float:
    return 2.0 * rows * rows * dimension


def _doubles(rows: int, dimension: int) -> float:
    return 16.0 * rows * dimension  # as doubles, twice while they are brought to unit length


METHODS = {
    "coverage": Method(
        coverage,
        blocked=False,
        first="images that stand for many not yet covered, of large gradient; copies count once",
        better="images that add more coverage for their quality",
        equal="images that add as much, with smaller ids",
        group_limit=True,
        flags=True,
        compares=True,
        operations=cell_by_cell,
    ),
    "dual-rank": Method(
        dual_rank,
        blocked=True,
        first="images near the centroid with a large gradient",
        better="better dual ranks",
        equal="equal dual ranks with smaller ids",
        by_row=True,
        by_dual_rank=True,
        trims=True,
    ),
    "random": Method(
        random,
        blocked=False,
        first="at random, by a hash of seed and id",
        better="earlier random draws",
        equal="equal random draws with smaller ids",
        by_row=True,
    ),
    "stratified-random": Method(
        random,
        blocked=True,
        first="at random, by a hash of seed and id",
        better="earlier random draws",
        equal="equal random draws with smaller ids",
        by_row=True,
    ),
    "near": Method(
        near,
        blocked=True,
        first="images near the centroid",
        better="images nearer to the centroid",
        by_row=True,
    ),
    "far": Method(
        far,
        blocked=True,
        first="images far from the centroid",
        better="images farther from the centroid",
        by_row=True,
    ),
    "moderate": Method(
        moderate,
        blocked=True,
        first="images at the median distance from the centroid",
        better="images nearer to the median distance",
        by_row=True,
    ),
    "gradient": Method(
        gradient, blocked=True, first="large gradients", better="larger gradients", by_row=True
    ),
    "k-center": Method(
        k_center,
        blocked=False,
        first="images farthest from those chosen so far",
        better="images farther from those chosen before them",
        compares=True,
        operations=_one_by_one,
        memory=_doubles,
    ),
    "herding": Method(
        herding,
        blocked=False,
        first="images that keep the mean of the chosen close to the mean of the pool",
        better="images that keep the mean better",
        compares=True,
        operations=_one_by_one,
        memory=_doubles,
    ),
    "facility-location": Method(
        facility_location,
        blocked=False,
        first="images that cover most of their neighbours",
        better="images that cover more of the others",
        compares=True,
        operations=_all_pairs,
        memory=_doubles,
    ),
    "ssl-prototypes": Method(
        ssl_prototypes,
        blocked=False,
        first="images far from (or near) the centroids, with a floor per cluster",
        better="images that come first by their distance",
    ),
    "ccs": Method(
        ccs,
        blocked=False,
        first="at random in strata of the gradient, without the hardest",
        better="earlier draws from the strata of the gradient",
    ),
    "d2": Method(
        d2,
        blocked=False,
        first="large gradients, discounted around each choice",
        better="images of larger score, neighbours discounted",
        compares=True,
        operations=_all_pairs,
        memory=_doubles,
    ),
    "hierarchical": Method(
        in_leaf,
        blocked=True,
        first="at random (or nearest) in clusters, with quotas by water-filling down a tree",
        better="images taken before it",
        by_row=True,
        tree=True,
    ),
}
