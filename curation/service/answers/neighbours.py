"""Neighbours: the images whose features are nearest to those of an image."""

from typing import Any

import numpy as np
import pyarrow as pa

from echostill.curation.service.answers.samples import samples_of
from echostill.curation.service.answers.uploads import TeacherFeatures
from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.data.neighbours import Neighbour, NeighbourIndex
from echostill.curation.service.data.pages import check_selected
from echostill.curation.service.data.state import ABSENT, State
from echostill.curation.service.problems import conflict, not_ready, unknown

CANDIDATES = 4  # searched for each neighbour, if images of the same group are left out
CANDIDATES_MAX = 1000


def neighbours_of_image(
    state: State,
    image_id: str,
    count: int,
    coreset_name: str | None,
    selected: str,
    same_group: bool,
) -> dict[str, Any]:
    """Find the images nearest to one of the pool, which itself is left out.

    Args:
        state: the mapped store.
        image_id: of the image.
        count: how many neighbours.
        coreset_name: of the coreset whose columns are shown and to which ``selected`` refers.
        selected: ``true``, ``false`` or ``any``.
        same_group: whether images of the same group may be among the neighbours.

    Raises:
        Problem: The image was not scored, or the index is not ready.
    """
    row = state.row(image_id)
    index = neighbour_index(state)
    vector = index.vector(row)
    if vector is None:
        raise conflict(f"image {image_id} was not scored: it has no feature to compare.")
    coreset = state.default_coreset(coreset_name)
    wanted = count + 1 if same_group else min(CANDIDATES_MAX, count * CANDIDATES + 1)
    found = index.search(vector, wanted, _mask(coreset, selected))
    found = [neighbour for neighbour in found if neighbour.row != row]
    if not same_group:
        found = _of_other_groups(state, found, row)
    return _answer(state, coreset, found[:count])


def neighbours_of_upload(
    state: State,
    teacher: TeacherFeatures,
    data: bytes,
    content_type: str,
    count: int,
    coreset_name: str | None,
    selected: str,
) -> dict[str, Any]:
    """Find the images nearest to an uploaded one, which is not stored.

    Args:
        state: the mapped store.
        teacher: computes the feature of the upload.
        data: an image file.
        content_type: of the file, such as ``image/png``.
        count, coreset_name, selected: as above.

    Raises:
        Problem: The index is not ready, the upload is no such image, or the teacher is missing.
    """
    index = neighbour_index(state)
    vector = teacher.feature(data, content_type)
    coreset = state.default_coreset(coreset_name)
    return _answer(state, coreset, index.search(vector, count, _mask(coreset, selected)))


def neighbour_index(state: State) -> NeighbourIndex:
    """Return the neighbour index.

    Raises:
        Problem: It is being built, or there are no scores.
    """
    if state.neighbours is None:
        if state.preparation.state == ABSENT:
            raise conflict("the pool is not scored, so there are no neighbours: `echostill score`.")
        raise not_ready("the neighbour index is being built.", 10)
    return state.neighbours


def _mask(coreset: Coreset | None, selected: str) -> np.ndarray | None:
    """The rows that may be found, as bits for the index; None for all."""
    check_selected(selected)
    if selected == "any":
        return None
    if coreset is None:
        raise unknown("coreset", "there is no coreset yet, so no image is selected.")
    return coreset.selected_bits if selected == "true" else coreset.unselected_bits


def _of_other_groups(state: State, found: list[Neighbour], row: int) -> list[Neighbour]:
    groups = state.catalogue.table["group_id"]
    own = groups[row].as_py()
    rows = pa.array([neighbour.row for neighbour in found], pa.int64())
    of_rows = groups.take(rows).to_pylist()
    return [neighbour for neighbour, group in zip(found, of_rows, strict=True) if group != own]


def _answer(state: State, coreset: Coreset | None, found: list[Neighbour]) -> dict[str, Any]:
    samples = samples_of(state, coreset, [neighbour.row for neighbour in found])
    items = [
        {"similarity": round(neighbour.similarity, 6), "sample": sample}
        for neighbour, sample in zip(found, samples, strict=True)
    ]
    return {"items": items, "approximate": True}
