"""What an ingest says at its end, and its dry run of the sample: groups, and what was passed over.

It is kept beside the listing of the files, for the report and for an ingest that is done already.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.ingestion.findings import Findings, describe_counts
from echostill.curation.ingestion.listing import Listing
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.patients.groups import GroupCounts, count_groups
from echostill.platform.errors import EchostillError
from echostill.platform.progress import console
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.records import Record
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table

FILE = "summary.json"
_NAMED = pa.schema([("group_id", pa.string()), ("source", pa.string())])


@dataclass(frozen=True)
class Summary:
    """What was found.

    Attributes:
        groups: Of the pool.
        passed_over: Files that were not read or are no pictures, by kind.
        warnings: What is doubtful, a sentence each.
    """

    groups: GroupCounts = field(default_factory=GroupCounts)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, stage: ShardedStage, records: Mapping[int, Record], listing: Listing) -> "Summary":
        """Sum up finished shards and the listing that they were made from."""
        findings = Findings(records[index].get("notes", {}) for index in sorted(records))
        columns = ["group_id", "source"]
        groups = count_groups(
            Table(stage.table, {}).read_part(records[index]["part"]["file"], columns)
            for index in sorted(records)
        )
        doubts = [groups.warning(), *findings.warnings(), findings.unused_keys()]
        passed = listing.passed_over + findings.passed_over()
        return cls(groups, dict(passed), tuple(doubt for doubt in doubts if doubt))

    @property
    def counts(self) -> dict[str, int]:
        """Numbers for the result of the stage."""
        return {
            "groups": self.groups.count,
            "largest_group": self.groups.largest_images,
            "passed_over": sum(self.passed_over.values()),
        }

    def describe(self) -> str:
        """Say it in words that end a sentence; empty of a pool of an earlier release."""
        passed = describe_counts(self.passed_over)
        said = [self.groups.describe()] if self.groups.count else []
        return "".join(f"; {one}" for one in said + ([f"passed over: {passed}"] if passed else []))

    def refuse_nothing(self, counts: Accounting, store: str) -> None:
        """Refuse a pool without a picture whose files are all of other kinds.

        Raises:
            EchostillError: It is one.
        """
        if counts.rows_in and counts.expected == counts.rows_in:
            raise EchostillError(
                f"ingest: none of the files is a picture of ultrasound: "
                f"{describe_counts(self.passed_over)}. `echostill quarantine {store} --all` lists "
                "them."
            )

    def warn(self) -> None:
        """Print what is doubtful."""
        for doubt in self.warnings:
            say(f"warning: {doubt}.")


def keep_summary(folder: Storage, summary: Summary) -> None:
    """Keep a summary in the store."""
    folder.write(FILE, json.dumps(asdict(summary), indent=1).encode())


def kept_summary(folder: Storage) -> Summary:
    """Return the summary that was kept, an empty one where there is none."""
    if not folder.exists(FILE):
        return Summary()
    values = json.loads(folder.read(FILE))
    return Summary(
        GroupCounts(**values["groups"]), values["passed_over"], tuple(values["warnings"])
    )


def in_sample(
    listing: Listing, sources: Sources, findings: Findings, pseudonymiser: Pseudonymiser
) -> Iterator[tuple[str, str]]:
    """Yield what a dry run says, as labelled lines: of the listing, and of the files it sampled.

    Args:
        listing: What was listed.
        sources: Its sources, with their groups.
        findings: What was noticed in the sample.
        pseudonymiser: Hides groups as the pool will.
    """
    named = sources.take(np.flatnonzero(sources.words["group"].where(bool)))
    columns = [list(named.words["group"].map(pseudonymiser.group)), named.values("name")]
    groups = count_groups([pa.table(columns, schema=_NAMED)])
    if named:
        others = len(sources) - len(named)
        by_themselves = f"; {others} files are in no group of a manifest" if others else ""
        yield "groups", f"as manifests name them: {groups.describe('file')}{by_themselves}"
    if listing.passed_over.total():
        yield "passed over", describe_counts(listing.passed_over)
    if sampled := describe_counts(findings.passed_over()):
        yield "passed over", f"in the sample: {sampled}"
    for doubt in (
        groups.warning(),
        *listing.warnings,
        *findings.warnings(),
        findings.unused_keys(),
    ):
        if doubt:
            yield "warning", doubt


def say(message: str) -> None:
    """Print a message beside the progress."""
    console.print(message, markup=False, soft_wrap=True)
