"""What the pool holds: counts, sizes, groups and the quarantine."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow.compute as pc

from echostill.eval.reporting import figures as draw
from echostill.eval.reporting.data import NOT_STATED, Material, counts, without_paths
from echostill.eval.reporting.page import Html, figure, heading, note, paragraph, table
from echostill.platform.tables.schemas import QUALITY_ISSUES

CATEGORIES = 12  # organs or devices that a figure names; the rest is added up
QUARANTINE_LINES = 12
NAME_LENGTH = 32


def accounts(material: Material) -> Iterable[Html]:
    """Say rows in = rows out + quarantined of each stage, and warn where it is not so."""
    for account in material.accounting:
        yield paragraph(
            Html(
                f"{account.stage.capitalize()}: <strong>{account.rows_in:,}</strong> rows in = "
                f"<strong>{account.rows_out:,}</strong> rows out + "
                f"<strong>{account.quarantined:,}</strong> quarantined"
            ),
            "equation",
        )
        if not account.adds_up:
            yield note(
                f"the rows of {account.stage} do not add up: "
                f"{account.rows_in - account.rows_out - account.quarantined:+,} rows. "
                "Run echostill verify.",
                warning=True,
            )


def contributors(material: Material) -> list[Html]:
    """The stores that the pool was merged from, and what each brought."""
    if not material.contributors:
        return []
    names = ("store", "merged", "duplicates", "withdrawn", "groups", "organs", "devices", "licence")
    words = names[5:]
    rows = [
        tuple(one[name] or ("–" if name in words else 0) for name in names)
        for one in material.contributors
    ]
    heads = ["Store", "Merged", "Duplicates", "Withdrawn", "Groups", "Organs", "Devices", "Licence"]
    apart = [one["store"] for one in material.contributors if not one["groups_join"]]
    said = "All are under one key: a patient of two stores is one group."
    if apart:
        said = (
            f"Groups of {', '.join(apart)} are under another key: a patient of two stores counts "
            "as two."
        )
    return [
        heading("Who contributed"),
        paragraph(f"Duplicates were left out: another store has the same pixels. {said}"),
        table(
            heads,
            rows,
            "Images of each store, as they were merged.",
            words=frozenset({0, 5, 6, 7}),
        ),
    ]


def quarantined(material: Material) -> list[Html]:
    """Show what was held back and why, by kind of error."""
    held = material.quarantine.to_pylist()
    found = [heading("Quarantine")]
    if material.passed_over:
        kinds = sorted(material.passed_over.items(), key=lambda item: (-item[1], item[0]))
        said = ", ".join(f"{number:,} {kind}" for kind, number in kinds)
        found.append(paragraph(f"Passed over, since they are no pictures or not read: {said}."))
    if not held:
        return [*found, paragraph("Nothing was quarantined.")]
    number = Counter((row["stage"], row["error_class"]) for row in held)
    example = {(row["stage"], row["error_class"]): row for row in reversed(held)}
    lines = [
        (
            key[1],
            key[0],
            count,
            without_paths(example[key]["source"] or example[key]["id"]),
            without_paths(example[key]["message"]),
        )
        for key, count in number.most_common(QUARANTINE_LINES)
    ]
    rest = len(number) - len(lines)
    caption = "What was held back, by kind of error, with one example each."
    if rest:
        caption += f" {rest} rarer kinds are left out."
    headings = ["Error", "Stage", "Rows", "Example", "Its message"]
    return [
        *found,
        table(headings, lines, caption, words=frozenset({0, 1, 3, 4}), kind="quarantine"),
    ]


def pool_figures(material: Material) -> list[Html]:
    """Draw organs, devices, sizes and groups."""
    images = material.images
    organs, devices = counts(images["organ"]), counts(images["device"])
    groups = pc.value_counts(images["group_id"]).field("counts").to_numpy()
    width, height = (
        pc.fill_null(images[f"original_{side}"], 0).to_numpy() for side in ("width", "height")
    )
    return [
        figure(
            draw.bars(_named(organs), "Organs", "images"),
            "organs",
            f"Images of each organ: {_listed(organs)}.",
        ),
        figure(
            draw.bars(_named(devices), "Devices", "images"),
            "devices",
            f"Images of each device: {_listed(devices)}.",
        ),
        figure(
            draw.sizes(width, height),
            "sizes",
            "Sizes before staging. The area of a circle is the number of images of that size.",
        ),
        figure(
            draw.histogram(groups, "Images per group", "images in a group", "groups"),
            "groups",
            f"{len(groups):,} groups (patients, studies or clips): the median group has "
            f"{np.median(groups):.0f} image(s), the largest {groups.max():,}. No split cuts "
            "through a group.",
        ),
    ]


def quality_flags(material: Material) -> list[Html]:
    """Count the images of each quality flag, and say that a flag alone drops nothing."""
    issues = [issue for issue in QUALITY_ISSUES if issue in material.images.column_names]
    if not issues:
        return []
    total = max(material.images.num_rows, 1)
    thresholds = material.configurations.get("ingest", {}).get("quality", {})
    excluded = material.configurations.get("select", {}).get("exclude_flags", [])
    lines = []
    for issue in issues:
        count = pc.sum(material.images[issue]).as_py() or 0
        limit = f"{thresholds[issue]:g}" if issue in thresholds else "not recorded"
        left_out = "yes" if issue in excluded else "no"
        lines.append((issue.replace("_", " "), count, f"{count / total:.1%}", limit, left_out))
    caption = "Images with each flag: those whose score (0 bad, 1 good) is below the threshold."
    headings = ["Flag", "Images", "Share", "Threshold", "Left out of the coreset"]
    return [
        heading("Quality flags"),
        paragraph("A flagged image stays in the pool; selection leaves it out only when asked to."),
        table(headings, lines, caption, words=frozenset({0, 4})),
    ]


def file_name(source: str) -> str:
    """Return the last part of a source, shortened in the middle where it is long."""
    name = source.replace("\\", "/").rpartition("/")[2]
    if len(name) <= NAME_LENGTH:
        return name
    kept = (NAME_LENGTH - 1) // 2
    return f"{name[:kept]}…{name[-kept:]}"


def _named(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The most frequent values, the others added up."""
    if len(pairs) <= CATEGORIES:
        return pairs
    rest = sum(count for _, count in pairs[CATEGORIES - 1 :])
    return [*pairs[: CATEGORIES - 1], (f"{len(pairs) - CATEGORIES + 1} others", rest)]


def _listed(pairs: list[tuple[str, int]]) -> str:
    if len(pairs) == 1 and pairs[0][0] == NOT_STATED:
        return "not stated for any"
    return ", ".join(f"{name} {count:,}" for name, count in _named(pairs))
