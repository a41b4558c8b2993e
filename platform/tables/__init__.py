"""Tables and the store: Parquet parts with manifests, fingerprints, one filesystem layer."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.platform.tables.store import Store
    from echostill.platform.tables.table import Table
    from echostill.platform.tables.verify import verify_store

_HOMES = {"Store": "store", "Table": "table", "verify_store": "verify"}

__all__ = ["Store", "Table", "verify_store"]

__getattr__ = lazy(__name__, _HOMES)
