"""The dataset card: what the images are, where they come from, how they were chosen.

A Markdown file with a YAML head, as Hugging Face's hub reads it.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import yaml

from echostill.curation.datasets.chosen import ChosenImages
from echostill.curation.datasets.forms import ORIGINALS, Form
from echostill.platform.tables.fingerprint import code_version
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import CONFIGURATION

COUNTED = ("split", "class", "organ", "device", "modality")
SHOWN = 20  # values of a column
MEANINGS = {
    "image_id": "128 bits in hexadecimal, from content and origin",
    "group_id": "patient, study or clip; no group is in two splits",
    "source": "file in the original source, with #frame for frames of a cine",
    "organ": "empty where unknown",
    "device": "empty where unknown",
    "label": "empty where unknown",
    "modality": "kind of ultrasound image",
    "frame": "number of the frame in its file, from 0",
    "width": "of the image, in pixels",
    "height": "of the image, in pixels",
    "original_width": "before the image was made smaller, in pixels",
    "original_height": "before the image was made smaller, in pixels",
    "colour": "whether the image is RGB",
    "class": "the class in this export",
    "split": "the split in this export",
    "file_name": "the image's file",
}


@dataclass(frozen=True)
class Facts:
    """What card and metadata say of a dataset.

    Attributes:
        name: Of the coreset.
        licence: In the words of whoever exports it; empty if unknown.
        images: Images written.
        groups: Groups they come from.
        pool_images: Images of the pool.
        counts: Images by value, for the columns in :data:`COUNTED`.
        chosen_by: Configuration of the selection.
        ingested: Configuration of the ingest.
        digests: Of the coreset and the pool.
        contributors: Stores that the pool was merged from, rows of the table of that name.
    """

    name: str
    licence: str
    images: int
    groups: int
    pool_images: int
    counts: dict[str, Counter[str]]
    chosen_by: dict[str, Any]
    ingested: dict[str, Any]
    digests: dict[str, str]
    contributors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Of the dataset."""
        return f"Ultrasound coreset {self.name}"

    @property
    def description(self) -> str:
        """What it is, in a sentence."""
        method = self.chosen_by.get("method", "an unknown method")
        return (
            f"{self.images} ultrasound images of {self.groups} patients, studies or clips, "
            f"chosen from a pool of {self.pool_images} by {method} with echostill {code_version()}."
        )


def facts_of(chosen: ChosenImages, table: pa.Table, licence: str) -> Facts:
    """Collect the facts.

    Args:
        chosen: The images of the coreset.
        table: What is known of each, with class and split.
        licence: In the words of whoever exports it.
    """
    return Facts(
        chosen.name,
        licence,
        len(chosen),
        len(set(table["group_id"].to_pylist())),
        chosen.pool.rows,
        {name: Counter(value or "" for value in table[name].to_pylist()) for name in COUNTED},
        _configuration(chosen.coreset.storage),
        _configuration(chosen.pool.storage),
        {"coreset": chosen.coreset.digest, "pool": chosen.pool.digest},
        chosen.store.read_contributors(),
    )


def _configuration(storage: Storage) -> dict[str, Any]:
    if not storage.exists(CONFIGURATION):
        return {}
    values: dict[str, Any] = json.loads(storage.read(CONFIGURATION))
    return values


def dataset_card(facts: Facts, form: Form) -> str:
    """Return the card."""
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_head(facts, form), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {facts.title}",
            "",
            facts.description,
            "",
            "## Licence and use",
            "",
            facts.licence
            or "Unknown: whoever shares these images has to find out, and say so here.",
            "These are medical images: check what patients and institutions have agreed to.",
            "",
            "## Where the images come from",
            "",
            *_origin(facts),
            "",
            "## How they were chosen",
            "",
            *_choice(facts),
            "",
            "## De-identification",
            "",
            *_privacy(facts, form),
            "",
            "## What is in it",
            "",
            f"The form is {form.summary}.",
            "",
            *_counts(facts),
            "",
            "| Column | Meaning |",
            "|---|---|",
            *(f"| `{name}` | {MEANINGS[name]} |" for name in MEANINGS if _has(form, name)),
            "",
            "## How to load it",
            "",
            "```python",
            form.loads.replace("DIR", ".").rstrip(),
            "```",
            "",
        ]
    )


def _has(form: Form, column: str) -> bool:
    return column != "file_name" or form.file_per_image or form.files_in_table


def _head(facts: Facts, form: Form) -> dict[str, Any]:
    head: dict[str, Any] = {
        "pretty_name": facts.title,
        "license": "other" if facts.licence else "unknown",
        "tags": ["medical", "ultrasound", "coreset"],
    }
    if facts.licence:
        head["license_name"] = facts.licence
    if form.name == "hf":
        files = [
            {"split": split, "path": f"data/{split}-*.parquet"} for split in facts.counts["split"]
        ]
        head["configs"] = [{"config_name": "default", "data_files": files}]
    return head


def _origin(facts: Facts) -> list[str]:
    if facts.contributors:
        return _merged_from(facts)
    sources = facts.ingested.get("source") or ()
    listed = [sources] if isinstance(sources, str) else list(sources)
    names = [f"- `{source.rstrip('/').rpartition('/')[2]}`" for source in listed]
    pool = f"The pool has {facts.pool_images} images (digest `{facts.digests['pool']}`)."
    return [pool, *(["", "It was made from:", "", *names] if names else [])]


def _merged_from(facts: Facts) -> list[str]:
    """Say which stores the pool was merged from; of many, the largest."""
    rows = sorted(facts.contributors, key=lambda one: (-one["merged"], one["store"]))
    lines = [
        f"- `{one['store']}`: {one['merged']} images of {one['groups']} groups; organs: "
        f"{one['organs']}; licence: {one['licence'] or 'unknown'}"
        for one in rows[:SHOWN]
    ]
    more = [f"- and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    pool = f"The pool has {facts.pool_images} images (digest `{facts.digests['pool']}`)."
    return [pool, "", "It was merged from:", "", *lines, *more]


def _choice(facts: Facts) -> list[str]:
    told = ("method", "budget", "seed", "balance", "max_per_group", "exclude_duplicates")
    settings = [
        f"- `{name}`: {facts.chosen_by[name]}"
        for name in told
        if facts.chosen_by.get(name) is not None
    ]
    return [f"Coreset `{facts.name}`, digest `{facts.digests['coreset']}`.", "", *settings]


def _privacy(facts: Facts, form: Form) -> list[str]:
    if form is ORIGINALS:
        return [
            "None: these are the original files, byte for byte. Names may be in their headers and "
            "pixels. Do not share them."
        ]
    settings = facts.ingested.get("deidentify") or {}
    pixels = settings.get("pixels", "unknown")
    said = {
        "off": "Pixels were not de-identified: names may be burned into the images.",
        "unknown": "It is not recorded whether pixels were de-identified.",
    }.get(
        pixels,
        "Pixels outside of the ultrasound sector were made black, and frames that may show text "
        f"were held back (`deidentify.pixels: {pixels}`, `deidentify.text: "
        f"{settings.get('text', 'hold')}`). No automatic method finds all text: look at the images "
        "before you share them.",
    )
    return [said, f"File names are kept as `deidentify.sources: {settings.get('sources')}`."]


def _counts(facts: Facts) -> list[str]:
    lines = []
    for name, counts in facts.counts.items():
        values = [f"{value or 'unknown'} {count}" for value, count in counts.most_common(SHOWN)]
        more = [f"{len(counts) - SHOWN} more"] if len(counts) > SHOWN else []
        lines.append(f"- {name}: {', '.join([*values, *more])}")
    return lines
