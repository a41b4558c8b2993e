"""From raw files to a coreset: ingest, score, duplicates, leaks, select, questions."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echostill.curation.client import connect
    from echostill.curation.coreset import SelectConfig, select
    from echostill.curation.duplicates import DuplicatesConfig, find_duplicates
    from echostill.curation.ingestion import IngestConfig, ingest, retry_ingest
    from echostill.curation.leakcheck import LeakReport, LeakSettings, check_leaks
    from echostill.curation.questions import Answer, why
    from echostill.curation.scoring import ScoreConfig, retry_score, score

# Imported when first used: scoring needs torch and timm, which take seconds to load, and neither
# the service nor its client nor a question about a coreset needs them.
_HOMES = {
    "Answer": "questions",
    "DuplicatesConfig": "duplicates",
    "IngestConfig": "ingestion",
    "LeakReport": "leakcheck",
    "LeakSettings": "leakcheck",
    "ScoreConfig": "scoring",
    "SelectConfig": "coreset",
    "check_leaks": "leakcheck",
    "connect": "client",
    "find_duplicates": "duplicates",
    "ingest": "ingestion",
    "retry_ingest": "ingestion",
    "retry_score": "scoring",
    "score": "scoring",
    "select": "coreset",
    "why": "questions",
}

__all__ = [
    "Answer",
    "DuplicatesConfig",
    "IngestConfig",
    "LeakReport",
    "LeakSettings",
    "ScoreConfig",
    "SelectConfig",
    "check_leaks",
    "connect",
    "find_duplicates",
    "ingest",
    "retry_ingest",
    "retry_score",
    "score",
    "select",
    "why",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
