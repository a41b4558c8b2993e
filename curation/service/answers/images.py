"""Images: where they come from, their scores, why they are in a coreset or not, their pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from echostill.curation.selection.explain.explain import find_image
from echostill.curation.selection.explain.origins import stores_of
from echostill.curation.selection.explain.questions import quarantined
from echostill.curation.service.answers.pins import pins_of
from echostill.curation.service.answers.samples import samples_of
from echostill.curation.service.answers.values import json_value
from echostill.curation.service.data.columns import numbers
from echostill.curation.service.data.state import State
from echostill.curation.service.problems import bad_request, unknown

SHORTEST_SEARCH = 4  # characters


def image_details(state: State, image_id: str, coreset_name: str | None) -> dict[str, Any]:
    """Return everything about one image: origin, scores, ranks, and why it is selected or not.

    Raises:
        Problem: No such image in the pool or the quarantine.
    """
    catalogue = state.catalogue
    row = catalogue.ids.find(image_id)
    if row is None:
        lost = quarantined(state.store, image_id)
        if lost is None:
            state.row(image_id)  # raises, and suggests a similar id
        assert lost is not None
        return {
            "image": None,
            "scores": None,
            "coreset": None,
            "why": {"text": lost.text, "values": json_value(lost.values)},
            "pins": pins_of(state, image_id),
        }
    found: dict[str, Any] = {
        "image": {"row": row, **catalogue.image(row)},
        "scores": catalogue.scores(row),
        "coreset": None,
        "why": {"text": "There is no coreset yet: pick one.", "values": {}},
        "pins": pins_of(state, image_id),
    }
    coreset = state.default_coreset(coreset_name)
    if coreset is None:
        return dict(json_value(found))
    position = coreset.position(row)
    if position is None:
        lost = quarantined(state.store, image_id)
        found["why"] = {
            "text": lost.text if lost else f"Image {image_id} was not scored.",
            "values": lost.values if lost else {},
        }
        return dict(json_value(found))
    text, values = coreset.why(position, found["image"])
    if state.merged and (origin := stores_of(state.store, image_id)):
        text += f"\n  {'store':<15}{origin}"
        values["origin"]["store"] = origin
    own = {name: values[name] for name in coreset.own_columns if name in values}
    found["coreset"] = {"name": coreset.entry.name, **own}
    found["why"] = {"text": text, "values": values}
    return dict(json_value(found))


def unique_image(state: State, name: str) -> int:
    """Return the row of the one image that a name means.

    Args:
        state: the mapped store.
        name: an image id, a unique beginning of one, a source, or its file name.

    Raises:
        UsageError: It means no image, or several.
    """
    return state.row(find_image(name, state.catalogue.table.select(["image_id", "source"])))


def search_images(
    state: State, text: str, limit: int, coreset_name: str | None, unique: bool = False
) -> dict[str, Any]:
    """Find images by the beginning of an id, then by text in the source.

    Args:
        state: the mapped store.
        text: at least four characters.
        limit: images at most.
        coreset_name: of the coreset whose columns are shown.
        unique: find only the one image that the text means, as :func:`unique_image` does.

    Raises:
        Problem: The text is too short.
        UsageError: Only one image is asked for, and the text means none or several.
    """
    if unique:
        coreset = state.default_coreset(coreset_name)
        return {"items": samples_of(state, coreset, [unique_image(state, text)])}
    text = text.strip()
    if len(text) < SHORTEST_SEARCH:
        raise bad_request(f"give at least {SHORTEST_SEARCH} characters of an id or a source.")
    catalogue = state.catalogue
    rows = list(catalogue.ids.with_prefix(text.lower())[:limit])
    if len(rows) < limit:
        found = pc.match_substring(catalogue.table["source"], text)
        by_source = np.flatnonzero(numbers(pc.fill_null(found, False)))[: limit + len(rows)]
        rows += [int(row) for row in by_source if row not in set(rows)]
    coreset = state.default_coreset(coreset_name)
    return {"items": samples_of(state, coreset, rows[:limit])}


def look_up(
    state: State, rows: Sequence[int], ids: Sequence[str], coreset_name: str | None
) -> dict[str, Any]:
    """Return samples by their rows in the catalogue, then by ids, in the order given.

    Raises:
        Problem: A row that the pool does not have, or an unknown id.
    """
    size = len(state.catalogue)
    for row in rows:
        if not 0 <= row < size:
            raise unknown("image", f"there is no row {row}: the pool has {size} images.")
    wanted = [*rows, *(state.row(image_id) for image_id in ids)]
    return {"items": samples_of(state, state.default_coreset(coreset_name), wanted)}


def thumbnail(state: State, row: int, size: int, format: str) -> bytes:
    """Return the staged picture of a row, its longest side at most ``size`` pixels."""
    part, part_row = state.catalogue.location(row)
    return state.thumbnails.picture(part, part_row, size, format)
