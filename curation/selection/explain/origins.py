"""From which stores an image of a merged pool came."""

import pyarrow.compute as pc

from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table


def stores_of(store: Store, image_id: str) -> str:
    """Return the store that an image came from, and those with copies of it that were left out.

    Args:
        store: The store.
        image_id: Of an image of the pool.

    Returns:
        Words such as ``bonn, also in cologne``; empty in a store that was not merged.
    """
    storage = store.origins()
    if not storage.exists(MANIFEST):
        return ""
    own, others = "", set()
    for part in Table.open(storage, "merge").parts():
        for row in part.filter(pc.equal(part["kept_id"], image_id)).to_pylist():
            if row["image_id"] == image_id and not own:
                own = row["store"]
            else:
                others.add(row["store"])
    return f"{own}, also in {', '.join(sorted(others))}" if others else own


def kept_for(store: Store, image_id: str) -> tuple[str, str]:
    """Return the store of an image that a merge left out, and the image that is there for it.

    Returns:
        Both empty where it left out none of that id.
    """
    storage = store.origins()
    for part in Table.open(storage, "merge").parts() if storage.exists(MANIFEST) else ():
        for row in part.filter(pc.equal(part["image_id"], image_id)).to_pylist():
            if row["kept_id"] != image_id:
                return row["store"], row["kept_id"]
    return "", ""
