"""The SQL views of a store, and the mapped files that each of them reads."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from echostill.curation.service.data.columns import open_columns, write_columns
from echostill.curation.service.data.state import State
from echostill.platform.errors import EchostillError
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.table import MANIFEST, Table

STAGES = ("ingest", "score")
# Tables that other stages may add to a store; their views have all columns.
OTHER_TABLES = ("duplicates", "leaks", "pins", "contributors", "origins")
SAMPLE_ORIGIN = ("source", "organ", "device", "label", "frame")


def describe_views(state: State, coreset: str | None) -> dict[str, Any]:
    """Describe all views for the SQL workers.

    Args:
        state: the mapped store.
        coreset: name of the coreset that the view ``coreset`` shows; None for the default.

    Returns:
        ``views``: name and sources (file, columns, condition, label), for ``worker.Views``.
    """
    catalogue, derived = state.catalogue, state.derived
    file = str(derived.catalogue)
    views = [_view("pool", {"file": file, "columns": catalogue.pool_columns})]
    if derived.scored:
        columns = ["image_id", *catalogue.score_columns]
        where = None if len(catalogue.scored_rows) == len(catalogue) else "scored"
        wanted = columns if where is None else [*columns, "scored"]
        views.append(_view("scores", {"file": file, "columns": wanted, "where": where}))
    views += _coreset_views(state, coreset, file)
    views.append(_view("quarantine", {"file": str(_quarantine(state))}))
    for name in OTHER_TABLES:
        found = _other(state, name)
        if found is not None:
            views.append(_view(name, {"file": str(found)}))
    predictions = [
        {"file": str(found), "label": {"name": "evaluation", "value": name}}
        for name in state.store.prediction_names()
        if (found := _other(state, f"predictions/{name}")) is not None
    ]
    if predictions:
        views.append(_view("predictions", *predictions))
    return {"views": views}


def _view(name: str, *sources: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "sources": list(sources)}


def _coreset_views(state: State, name: str | None, catalogue_file: str) -> list[dict[str, Any]]:
    name = name or state.default_name()
    if name is None:
        return []
    shown = state.coreset(name)
    columns = shown.own_columns
    file = str(state.coreset_file(shown.entry))
    views = [_view("coreset", {"file": file, "columns": columns})]
    if shown.aligned:
        joined = {"file": catalogue_file, "columns": list(SAMPLE_ORIGIN)}
        views.append(_view("samples", {"file": file, "columns": columns, "joined": joined}))
    every = []
    for entry in sorted(state.entries.values(), key=lambda entry: entry.name):
        coreset = state.coreset(entry.name)
        every.append(
            {
                "file": str(state.coreset_file(entry)),
                "columns": coreset.own_columns,
                "label": {"name": "coreset", "value": entry.name},
            }
        )
    return [*views, _view("coresets", *every)]


def _quarantine(state: State) -> Path:
    tables = [
        Table.open(storage, stage)
        for stage in STAGES
        if (storage := state.store.quarantine(stage)).exists(MANIFEST)
    ]
    digest = "-".join(table.digest[:8] for table in tables)
    path = state.folder / f"quarantine-{digest}-{state.derived.key}.arrow"
    if not path.exists():
        parts = [part for table in tables for part in table.parts()]
        rows = [QUARANTINE_SCHEMA.empty_table()]
        rows += [part.select(QUARANTINE_SCHEMA.names) for part in parts]
        write_columns(path, pa.concat_tables(rows))
    return path


def _other(state: State, name: str) -> Path | None:
    """Map a table by name, if the store has it and its columns can be mapped."""
    storage = state.store.table(name)
    if not storage.exists(MANIFEST):
        return None
    table = Table.open(storage, name)
    path = (
        state.folder
        / f"table-{name.replace('/', '-')}-{table.digest[:16]}-{state.derived.key}.arrow"
    )
    if not path.exists():
        if not table.part_names:
            return None
        try:
            write_columns(path, table.read())
        except (pa.ArrowException, EchostillError):
            return None
    return path


def view_columns(description: dict[str, Any]) -> list[dict[str, Any]]:
    """List the views with their columns, for users who write a query."""
    found = []
    for view in description["views"]:
        source = view["sources"][0]
        schema = open_columns(Path(source["file"])).schema
        names = list(source.get("columns") or schema.names)
        types = {name: schema.field(name).type for name in names}
        if source.get("label"):
            types = {source["label"]["name"]: pa.string(), **types}
        if source.get("joined"):
            joined = open_columns(Path(source["joined"]["file"])).schema
            types |= {name: joined.field(name).type for name in source["joined"]["columns"]}
        columns = [{"name": name, "type": _sql_type(kind)} for name, kind in types.items()]
        found.append({"name": view["name"], "columns": columns})
    return found


def _sql_type(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        size = f"[{kind.list_size}]" if pa.types.is_fixed_size_list(kind) else "[]"
        return f"{_sql_type(kind.value_type)}{size}"
    names = {
        pa.string(): "VARCHAR",
        pa.large_string(): "VARCHAR",
        pa.bool_(): "BOOLEAN",
        pa.int8(): "TINYINT",
        pa.int16(): "SMALLINT",
        pa.int32(): "INTEGER",
        pa.int64(): "BIGINT",
        pa.uint32(): "UINTEGER",
        pa.float32(): "FLOAT",
        pa.float64(): "DOUBLE",
    }
    return names.get(kind, str(kind).upper())
