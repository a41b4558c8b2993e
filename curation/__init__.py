"""From raw files to a coreset: ingest, score, duplicates, leaks, select, questions."""

from typing import TYPE_CHECKING

from echostill.platform.lazy import lazy

if TYPE_CHECKING:
    from echostill.curation.client import connect
    from echostill.curation.copies.leakcheck import LeakReport, LeakSettings, check_leaks
    from echostill.curation.copies.stage import DuplicatesConfig, find_duplicates
    from echostill.curation.datasets.torch_dataset import CoresetDataset
    from echostill.curation.datasets.writing import export_dataset
    from echostill.curation.ingestion.stage import IngestConfig, ingest, retry_ingest
    from echostill.curation.local import open_store
    from echostill.curation.scoring.stage import ScoreConfig, retry_score, score
    from echostill.curation.selection.core import select_rows
    from echostill.curation.selection.explain.questions import Answer, why
    from echostill.curation.selection.stage import SelectConfig, select

_HOMES = {
    "Answer": "selection.explain.questions",
    "CoresetDataset": "datasets.torch_dataset",
    "DuplicatesConfig": "copies.stage",
    "IngestConfig": "ingestion.stage",
    "LeakReport": "copies.leakcheck",
    "LeakSettings": "copies.leakcheck",
    "ScoreConfig": "scoring.stage",
    "SelectConfig": "selection.stage",
    "check_leaks": "copies.leakcheck",
    "connect": "client",
    "export_dataset": "datasets.writing",
    "find_duplicates": "copies.stage",
    "ingest": "ingestion.stage",
    "open_store": "local",
    "retry_ingest": "ingestion.stage",
    "retry_score": "scoring.stage",
    "score": "scoring.stage",
    "select": "selection.stage",
    "select_rows": "selection.core",
    "why": "selection.explain.questions",
}

__all__ = [
    "Answer",
    "CoresetDataset",
    "DuplicatesConfig",
    "IngestConfig",
    "LeakReport",
    "LeakSettings",
    "ScoreConfig",
    "SelectConfig",
    "check_leaks",
    "connect",
    "export_dataset",
    "find_duplicates",
    "ingest",
    "open_store",
    "retry_ingest",
    "retry_score",
    "score",
    "select",
    "select_rows",
    "why",
]

__getattr__ = lazy(__name__, _HOMES)
