"""The review sheet: one page beside the pictures of the frames held back, to decide on them.

It needs no server. It filters by reason, organ, device, group and score, takes keys, decides on
all that a filter shows at once, and saves the ids of the approved frames for
``echostill review --approve``.
"""

import json
from importlib import resources

from echostill.curation.deidentification.decisions import OPEN, review_storage
from echostill.curation.deidentification.review import PICTURES, waiting
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store

SHEET = "review.html"
_COLUMNS = (
    "image_id", "source", "reason", "score", "redacted", "cleaned", "organ", "device", "group_id",
)  # fmt: skip


def write_sheet(root: str) -> str:
    """Write the review sheet of a store's frames that are held back and not approved.

    Returns:
        Path or URI of the page.

    Raises:
        UsageError: There is no review table, nothing to review, or no picture to look at.
    """
    rows = [row for row in waiting(root) if row["state"] == OPEN]
    if not rows:
        raise UsageError(f"{root}: no frame is held back.")
    pictures = review_storage(Store(root)).at(PICTURES)
    written = {name.removesuffix(".png") for name in pictures.list()}
    seen = [row for row in rows if row["image_id"] in written]
    if not seen:
        raise UsageError(
            f"{root}: there are no pictures of the {len(rows)} frames held back. Run ingest with "
            "deidentify.review_pixels=true and --overwrite; the pictures are identifiable."
        )
    data = {
        "store": root,
        "key": seen[0]["cleaned"] + str(len(seen)),
        "rows": [{name: row[name] for name in _COLUMNS} for row in seen],
    }
    template = resources.files(__package__ or "").joinpath("sheet.html").read_text("utf-8")
    # A name in the data must not end the script that it stands in.
    page = template.replace("/*DATA*/", json.dumps(data).replace("<", "\\u003c"))
    pictures.write(SHEET, page.encode())
    return f"{pictures.root}/{SHEET}"
