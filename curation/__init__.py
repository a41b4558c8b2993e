"""From raw files to a coreset: ingest, score, duplicates, leaks, select, questions."""

from echostill.curation.coreset import SelectConfig, select
from echostill.curation.duplicates import DuplicatesConfig, find_duplicates
from echostill.curation.ingestion import IngestConfig, ingest
from echostill.curation.leakcheck import LeakReport, LeakSettings, check_leaks
from echostill.curation.questions import Answer, why
from echostill.curation.scoring import ScoreConfig, score

__all__ = [
    "Answer",
    "DuplicatesConfig",
    "IngestConfig",
    "LeakReport",
    "LeakSettings",
    "ScoreConfig",
    "SelectConfig",
    "check_leaks",
    "find_duplicates",
    "ingest",
    "score",
    "select",
    "why",
]
