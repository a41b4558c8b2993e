"""Who has seen what is withdrawn: coresets, trained runs, reports, exports.

A result knows its inputs by their digests. A table that lost images before keeps the digests that
it had then, so its earlier contents are known too. Where an input is no longer in the store, the
answer is ``perhaps``.
"""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echostill.platform.names import is_name
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.holdings import holdings
from echostill.platform.tables.store import Store, read_configuration
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.withdrawal.exports import EXPORTS
from echostill.platform.withdrawal.state import former_digests
from echostill.platform.withdrawal.traces import Traces

YES, NO, PERHAPS = "yes", "no", "perhaps"


@dataclass(frozen=True)
class Witnesses:
    """What has seen, or may have seen, what is withdrawn.

    Attributes:
        coresets: What each of them loses.
        runs: ``yes``, ``no`` or ``perhaps`` by the place of a training run.
        reports: Likewise.
        exports: Records of what was written elsewhere, with ``seen``.
    """

    coresets: list[dict[str, Any]]
    runs: dict[str, str]
    reports: dict[str, str]
    exports: list[dict[str, Any]]

    @property
    def trained(self) -> set[str]:
        """Places of the runs that have, or may have, seen it."""
        return {place for place, seen in self.runs.items() if seen != NO}


def find_witnesses(store: Store, traces: Traces) -> Witnesses:
    """Find out who has seen withdrawn images; they must still be in the tables."""
    coresets, by_digest = [], {}
    for name in store.coreset_names():
        table = store.open_coreset(name)
        loses = _coreset(name, table, traces)
        coresets += [loses] if loses["rows"] else []
        for digest in (*former_digests(table.manifest), table.digest):
            by_digest[digest] = YES if loses["chosen"] else NO
    pool = _pool(store)
    begun = {file.split("/")[1] for file in store.storage.list("runs", recursive=True)}
    runs = {
        f"runs/{name}": _run(store, name, by_digest, pool)
        for name in sorted(begun)
        if is_name(name) and store.run(name).exists(FINGERPRINT)
    }
    return Witnesses(coresets, runs, _reports(store, runs), _exports(store, by_digest))


def _coreset(name: str, table: Table, traces: Traces) -> dict[str, Any]:
    """What a coreset loses: rows, chosen ones, and what is left of the quotas they were for."""
    wanted = ["image_id", "selected", "cluster", "quota", "stratum"]
    known = [column for column, _ in table.manifest["schema"]]
    rows = table.read([column for column in wanted if column in known])
    gone = pc.is_in(rows["image_id"], value_set=pa.array(sorted(traces.ids), pa.string()))
    chosen = rows["selected"]
    left = int(pc.sum(pc.and_(chosen, pc.invert(gone))).as_py() or 0)
    lost = rows.filter(pc.and_(chosen, gone))
    quotas: dict[tuple[int, str], dict[str, Any]] = {}
    if "quota" in known:
        stays = rows.filter(pc.and_(chosen, pc.invert(gone)))
        kept = Counter((row["cluster"], row.get("stratum") or "") for row in stays.to_pylist())
        for row in lost.to_pylist():
            key = (row["cluster"], row.get("stratum") or "")
            quotas[key] = {
                "cluster": row["cluster"],
                **({"stratum": key[1]} if key[1] else {}),
                "quota": row["quota"],
                "left": kept[key],
            }
    return {
        "name": name,
        "rows": int(pc.sum(gone).as_py() or 0),
        "chosen": lost.num_rows,
        "left": left,
        "budget": table.manifest.get("budget", left + lost.num_rows),
        "quotas": [quotas[key] for key in sorted(quotas)],
    }


def _pool(store: Store) -> tuple[set[str], int]:
    """The digests that the pool has and had, and its rows."""
    storage = store.pool()
    if not storage.exists(MANIFEST):
        return set(), 0
    pool = store.open_pool()
    return {*former_digests(pool.manifest), pool.digest}, pool.rows


def _run(store: Store, name: str, coresets: dict[str, str], pool: tuple[set[str], int]) -> str:
    """Whether a run was trained on a withdrawn image."""
    inputs = json.loads(store.run(name).read(FINGERPRINT)).get("inputs", {})
    if "coreset" in inputs:
        return coresets.get(inputs["coreset"], PERHAPS)
    digests, rows = pool
    if inputs.get("pool") not in digests:
        return PERHAPS if inputs else NO
    sample = (read_configuration(store.run(name)).get("proxy") or {}).get("sample")
    return PERHAPS if sample is not None and sample < rows else YES


def _reports(store: Store, runs: dict[str, str]) -> dict[str, str]:
    """Whether a report shows or tests what was made of withdrawn images."""
    found = {}
    for holding in holdings(store, "reports"):
        seen = {runs.get(origin, NO) for origin in holding.made_from.values()}
        page = store.storage.at(holding.place).exists("report.html")
        found[holding.place] = YES if YES in seen else PERHAPS if page or PERHAPS in seen else NO
    return found


def _exports(store: Store, coresets: dict[str, str]) -> list[dict[str, Any]]:
    """What was written elsewhere."""
    found = []
    for name in store.storage.list(EXPORTS):
        record = json.loads(store.storage.read(name))
        seen = coresets.get(record["digest"], PERHAPS)
        if seen != NO:
            about = {key: record[key] for key in ("to", "form", "coreset", "at")}
            found.append({**about, "seen": seen})
    return found
