"""Check that a query is one SELECT over the service's views, in DuckDB's own syntax tree.

Only what is known to be harmless is accepted: a DuckDB statement of type SELECT may contain COPY
and DELETE (in a WITH), and table functions that read files, URLs or settings.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

from echostill.platform.errors import UsageError, nearest

QUERIES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
SOURCES = {
    "BASE_TABLE",
    "CTE",
    "EMPTY",
    "EMPTY_FROM",
    "EXPRESSION_LIST",
    "JOIN",
    "PIVOT",
    "SHOW_REF",
    "SUBQUERY",
    "TABLE_FUNCTION",
}
TABLE_FUNCTIONS = {"generate_series", "range", "unnest"}
REFUSED_FUNCTIONS = {
    "current_setting",
    "currval",
    "getenv",
    "getvariable",
    "nextval",
    "query",
    "query_table",
    "setseed",
    "sleep",
    "sleep_ms",
    "write_log",
}
MAIN = ({"", "main"}, {"", "main", "memory"})  # schemas; and with them catalogues


def check_select(connection: duckdb.DuckDBPyConnection, sql: str, views: Collection[str]) -> None:
    """Check that a text is one SELECT over known views.

    Args:
        connection: any; it parses the text and does not run it.
        sql: the user's query.
        views: names that may be read.

    Raises:
        UsageError: It is something else; the message says what.
        duckdb.Error: It is not SQL.
    """
    statements = connection.extract_statements(sql)  # duckdb's own would open another database
    if len(statements) != 1:
        raise UsageError(f"send one SELECT, not {len(statements)} statements.")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise UsageError(f"only SELECT is allowed, not {_words(kind.name)}.")
    # To the last row: while a result is open, the connection takes no other query.
    found = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
    try:
        tree = json.loads(found[0][0]) if found else {"error": True}
    except RecursionError:
        raise UsageError("the query is nested too deeply.") from None
    if tree.get("error"):
        raise UsageError("only a plain SELECT is allowed.")
    names = set(views)
    for node in _nodes(tree["statements"]):
        for entry in (node.get("cte_map") or {}).get("map", []):
            names.add(entry["key"].lower())
    for node in _nodes(tree["statements"]):
        _check_node(node, names, views)


def _check_node(node: dict[str, Any], names: set[str], views: Collection[str]) -> None:
    kind = str(node.get("type", ""))
    if ("cte_map" in node or kind.endswith("_NODE")) and kind not in QUERIES:
        raise UsageError(f"only SELECT is allowed, not {_words(kind)}.")
    if "sample" in node and "alias" in node and kind not in SOURCES:
        raise UsageError(f"a query cannot read from {_words(kind)}.")
    if kind == "BASE_TABLE":
        _check_table(node, names, views)
    elif kind == "TABLE_FUNCTION":
        function = str((node.get("function") or {}).get("function_name", "")).lower()
        if function not in TABLE_FUNCTIONS:
            raise UsageError(
                f"the table function '{function}' is not allowed. Allowed are "
                f"{', '.join(sorted(TABLE_FUNCTIONS))}, and the views {', '.join(sorted(views))}."
            )
    elif kind == "SHOW_REF" and (node.get("table_name") or not node.get("query")):
        raise UsageError("DESCRIBE and SUMMARIZE are allowed only for a view or a query.")
    if "function_name" in node and str(node["function_name"]).lower() in REFUSED_FUNCTIONS:
        raise UsageError(f"the function '{node['function_name']}' is not allowed.")


def _check_table(node: dict[str, Any], names: set[str], views: Collection[str]) -> None:
    path = [str(step) for step in (node.get("qualified_name") or {}).get("path") or []]
    schema = str(node.get("schema_name") or "").lower()
    catalogue = str(node.get("catalog_name") or "").lower()
    name = str(node.get("table_name") or "")
    qualified = [step.lower() for step in path[:-1]] or [catalogue, schema]
    plain = schema in MAIN[0] and all(step in MAIN[1] for step in qualified)
    if not plain or name.lower() not in names:
        raise UsageError(
            f"there is no view '{name}'.{nearest(name, views)} The views are "
            f"{', '.join(sorted(views))}."
        )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a tree, without recursion: its depth is up to the user."""
    waiting = [tree]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _words(kind: str) -> str:
    return kind.removesuffix("_QUERY_NODE").removesuffix("_NODE").replace("_", " ")
