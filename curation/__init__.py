"""From raw files to a coreset: ingest, score, select, and questions about the result."""

from echostill.curation.coreset import SelectConfig, select
from echostill.curation.ingestion import IngestConfig, ingest, retry_ingest
from echostill.curation.questions import Answer, why
from echostill.curation.scoring import ScoreConfig, retry_score, score

__all__ = [
    "Answer",
    "IngestConfig",
    "ScoreConfig",
    "SelectConfig",
    "ingest",
    "retry_ingest",
    "retry_score",
    "score",
    "select",
    "why",
]
