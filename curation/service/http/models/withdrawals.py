"""Receipts of withdrawals, and the one that is at work."""

from typing import Any, Literal

from pydantic import ConfigDict

from echostill.curation.service.http.models.base import Answer

Seen = Literal["yes", "perhaps"]
EXAMPLE: dict[str, Any] = {
    "number": "w-000001",
    "at": "2026-03-02T10:00:00Z",
    "reason": "consent was withdrawn",
    "kind": "group",
    "counts": {"images": 6, "exact_copies": 0, "groups": 1, "in_quarantine": 0},
    "rows": {"pool": 6, "scores": 6, "coresets/half": 6},
    "mended": {"sources": 6},
    "files": [
        {"place": "reports/distilled", "what": "page of a report", "files": 1, "how": "deleted"}
    ],
    "coresets": [
        {
            "name": "half",
            "rows": 6,
            "chosen": 3,
            "left": 115,
            "budget": 118,
            "quotas": [{"cluster": 4, "quota": 15, "left": 12}],
        }
    ],
    "runs": {"runs/distilled-0": "yes"},
    "reports": {"reports/distilled": "yes"},
    "exports": [],
    "finished": True,
    "not_reached": ["copies and backups of the store"],
    "text": "w-000001: removed 6 image(s), 0 row(s) in quarantine",
}


class WithdrawalCounts(Answer):
    """How much of what was asked for; exact copies have the same pixels under another id."""

    images: int
    exact_copies: int
    groups: int
    in_quarantine: int


class RemovedFiles(Answer):
    """Files of one place and kind."""

    place: str
    what: str
    files: int
    how: Literal["deleted", "mended"]


class QuotaLeft(Answer):
    """What is left of a cluster's quota."""

    cluster: int
    stratum: str = ""
    quota: int
    left: int


class CoresetLoss(Answer):
    """What a coreset loses."""

    name: str
    rows: int
    chosen: int
    left: int
    budget: int
    quotas: list[QuotaLeft]


class SeenExport(Answer):
    """What was written elsewhere with it, or perhaps with it."""

    to: str
    form: str
    coreset: str
    at: str
    seen: Seen


class WithdrawalReceipt(Answer):
    """What a withdrawal removes, or has removed (`finished`); `text` says it in words."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    number: str
    at: str
    reason: str
    kind: Literal["image", "group", "patient"]
    counts: WithdrawalCounts
    rows: dict[str, int]
    mended: dict[str, int]
    files: list[RemovedFiles]
    coresets: list[CoresetLoss]
    runs: dict[str, Seen]
    reports: dict[str, Seen]
    exports: list[SeenExport]
    finished: bool
    not_reached: list[str]
    text: str


class WithdrawalProgress(Answer):
    """The withdrawal that is at work, or was last; `interrupted` ones have to be finished."""

    state: Literal["idle", "running", "interrupted", "done", "failed"]
    stage: str
    fraction: float
    message: str


class WithdrawalList(Answer):
    """The receipts, newest first, and what is at work."""

    current: WithdrawalProgress
    items: list[WithdrawalReceipt]
