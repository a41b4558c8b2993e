"""Writing the benchmark's report from the rows of its runs."""

import json

from echostill.eval.unius.running import rows
from echostill.eval.unius.summary.page import render
from echostill.eval.unius.summary.results import BenchResults
from echostill.platform.names import check_name
from echostill.platform.tables.store import Store

REPORT = "report.html"


def write_report(store: str, name: str) -> str:
    """Write ``benchmarks/<name>/report.html`` from what is there now.

    A report is cheap, so it is written anew every time.

    Returns:
        Where it is.

    Raises:
        UsageError: There are no results of that name.
    """
    storage = Store(store).benchmark(check_name(name))
    found = rows.read_rows(storage)
    costs = json.loads(storage.read(rows.COSTS)) if storage.exists(rows.COSTS) else {}
    storage.write(REPORT, render(name, BenchResults(found, costs)).encode())
    rows.finish(storage)
    return storage.locate(REPORT)
