"""The worker of an ingest: reads the files of a shard into rows of the pool and quarantine rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import pyarrow as pa

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.findings import Findings
from echostill.curation.ingestion.growth.changes import content_mark, shard_name
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.curation.withdrawal.refusal import refuse_withdrawn
from echostill.platform.shards.outcome import Outcome
from echostill.platform.tables.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA, REDACTED

Payload = list[dict[str, Any]]


@dataclass(frozen=True)
class IngestWorker:
    """Reads the files of one shard; each file is a unit that can be read again separately."""

    settings: IngestSettings
    pseudonymiser: Pseudonymiser
    gate: ReviewGate
    samples: dict[str, int]  # frames for the contact sheet, by shard

    def process(self, payload: Any) -> Outcome:
        """Read a list of sources (plain values) into pool rows and quarantine rows."""
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        units, digests = [], []
        shard = shard_name(payload)
        findings = Findings()
        self.gate.sample = self.samples.get(shard, 0)
        for values in payload:
            before = len(rows), len(refused)
            findings.content = ""
            source = Source(**values)
            key = self.pseudonymiser.key
            for item in read_source(source, self.settings, key, self.gate, findings):
                if isinstance(item, Failure):
                    refused.append(self._refusal(item, source))
                else:
                    rows.append(self.pseudonymiser.row(item))
            units.append((len(rows) - before[0], len(refused) - before[1]))
            digests.append(content_mark(key, findings.content))
        outcome = Outcome(
            pa.Table.from_pylist(rows, schema=pool_schema(self.settings)),
            pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA),
            units,
            {"read": time.perf_counter() - started},
            findings.notes(),
            digests,
        )
        admitted = refuse_withdrawn(outcome, self.gate, self.pseudonymiser.key)
        self.gate.finish(shard)
        return admitted

    def _refusal(self, failure: Failure, source: Source) -> dict[str, str]:
        row = self.pseudonymiser.refusal(failure.row(), source.group)
        if failure.context is not None:
            group = self.pseudonymiser.group(failure.context.group)
            row["message"] += replace(failure.context, group=group).describe()
        return row

    def process_units(self, payload: Any, units: Sequence[int]) -> Outcome:
        """Read only the sources with these numbers."""
        return self.process([payload[number] for number in units])


class Payloads(Sequence[Payload | None]):
    """What the workers get, made of the files of a shard when it is asked for: all fill the memory.

    None stands for a shard that cannot be read now.
    """

    def __init__(self, shards: Sequence[Sources | None]) -> None:
        self._shards = shards

    def __len__(self) -> int:
        """Return the number of shards."""
        return len(self._shards)

    @overload
    def __getitem__(self, shard: int) -> Payload | None: ...
    @overload
    def __getitem__(self, shard: slice) -> "Payloads": ...

    def __getitem__(self, shard: int | slice) -> "Payload | Payloads | None":
        """Return the sources of a shard as plain values, or the payloads of some shards."""
        if isinstance(shard, slice):
            return Payloads(self._shards[shard])
        sources = self._shards[shard]
        return None if sources is None else [source.values() for source in sources]


@dataclass(frozen=True)
class MakeWorker:
    """Makes the worker of a process."""

    settings: IngestSettings
    pseudonymiser: Pseudonymiser
    gate: ReviewGate
    samples: dict[str, int]

    def __call__(self) -> IngestWorker:
        """Make it."""
        return IngestWorker(self.settings, self.pseudonymiser, self.gate, self.samples)


def pool_schema(settings: IngestSettings) -> pa.Schema:
    """Return the columns of the pool that these settings make."""
    return POOL_SCHEMA.append(REDACTED) if settings.deidentify.redacts else POOL_SCHEMA
