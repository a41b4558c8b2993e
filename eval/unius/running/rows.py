"""What a run leaves: a row of results and a table of predictions for each unit, kept when done.

========================  =================================================================
``rows/KEY.json``          metrics of a (set, model, seed, protocol); written last
``predictions/KEY.parquet``  a row per tested image, from which the metrics can be made again
``costs.json``             parameters, operations and latency of each model
``manifest.json``          checksums of all of them
========================  =================================================================
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from echostill.eval.unius.protocols.measures import Measured, predictions_table
from echostill.eval.unius.protocols.settings import ProtocolSettings
from echostill.eval.unius.running.models import BenchUnit
from echostill.platform.computing.precision import Precision
from echostill.platform.computing.settling import with_precision
from echostill.platform.config import result_relevant
from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import FINGERPRINT, Claim, Fingerprint, code_version
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import finish_run
from echostill.platform.tables.table import MANIFEST, decode_parquet, encode_parquet

STAGE = "bench"
COSTS = "costs.json"
Row = dict[str, Any]


def claim(storage: Storage, settings: ProtocolSettings, precision: Precision = "float32") -> Claim:
    """Return the claim on a folder of results: rows in it were made with the same settings."""
    wanted = Fingerprint({"protocol": result_relevant(settings)}, code_version(), {}, {})
    wanted = with_precision(wanted, precision)
    return Claim(storage, wanted, STAGE, "results of the benchmark")


def row_file(unit: BenchUnit) -> str:
    """Return where a unit's row is."""
    return f"rows/{unit.key.digest[:24]}.json"


def predictions_file(row: str) -> str:
    """Return where the predictions of a row's file are."""
    return row.replace("rows/", "predictions/").replace(".json", ".parquet")


def make_row(unit: BenchUnit, image_size: int, measured: Sequence[Measured]) -> tuple[Row, bytes]:
    """Return a unit's row and its predictions as Parquet; the same results give the same bytes."""
    row = {
        "set": unit.task.set,
        "task": unit.task.name,
        "kind": unit.task.kind,
        "organs": list(unit.task.organs),
        "classes": list(unit.task.settings.classes or unit.task.structures),
        "protocol": unit.protocol,
        "candidate": unit.model.candidate,
        "model": unit.model.model,
        "image_size": image_size,
        "run": unit.model.run,
        "seed": unit.model.seed,
        "table": unit.task.digest,
        "key": unit.key.digest,
        "measured": [
            {
                "method": one.method,
                "condition": one.condition,
                "share": one.share,
                "metrics": one.metrics,
            }
            for one in measured
        ],
    }
    return row, encode_parquet(predictions_table(measured))


def write_row(storage: Storage, unit: BenchUnit, row: Row, predictions: bytes) -> None:
    """Keep a unit's results. The row goes last: it says that the unit is done."""
    file = row_file(unit)
    storage.write(predictions_file(file), predictions)
    storage.write(file, json.dumps(row, indent=1).encode())


def read_rows(storage: Storage) -> list[tuple[Row, pa.Table]]:
    """Read all rows with their predictions, sorted by task, protocol, model and seed.

    Raises:
        UsageError: There are none.
    """
    names = [name for name in storage.list("rows") if name.endswith(".json")]
    names = sorted(name if "/" in name else f"rows/{name}" for name in names)
    if not names:
        raise UsageError(
            f"'{storage.root}' has no results: run `echostill bench run` with this name first."
        )
    rows = [
        (json.loads(storage.read(name)), decode_parquet(storage.read(predictions_file(name))))
        for name in names
    ]
    return sorted(
        rows,
        key=lambda pair: tuple(
            str(pair[0][key]) for key in ("task", "protocol", "candidate", "seed", "key")
        ),
    )


def finish(storage: Storage, extra: Sequence[str] = ()) -> None:
    """Write the manifest over everything in the folder that belongs to the results."""
    kept = {FINGERPRINT, MANIFEST, "mlflow.json"}
    names = [
        name
        for name in sorted({*storage.list(recursive=True), *extra})
        if name not in kept and not name.startswith("tracking/")
    ]
    values = json.loads(storage.read(FINGERPRINT))
    made = Fingerprint(values["configuration"], values["code"], values["weights"], values["inputs"])
    finish_run(storage, stage=STAGE, files=names, fingerprint=made)
