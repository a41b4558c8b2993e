"""The receipt of a withdrawal: what was removed where, and who has seen it. It names nobody."""

from dataclasses import dataclass, field
from typing import Any

from echostill.curation.withdrawal.request import WithdrawnImages
from echostill.curation.withdrawal.seen import NO, Witnesses

# What no command on this machine can reach.
NOT_REACHED = (
    "copies and backups of the store, earlier versions that a bucket keeps, and what was exported "
    "or downloaded before",
    "trained weights: a model that has seen an image is trained again, or deleted",
    "derived files and staged arrays on other machines and in folders given with --index-folder",
    "pictures in the caches of browsers, and in a tracking server outside of the store",
)


@dataclass(frozen=True)
class Receipt:
    """What a withdrawal removes, or has removed.

    Attributes:
        number: Of the withdrawal in its store, such as ``w-000001``.
        at: When it began, UTC.
        reason: In the words of whoever did it.
        kind: What was asked for: ``image``, ``group`` or ``patient``.
        counts: Images, those of them that only have the same pixels, groups that are wholly gone,
            and rows in quarantine.
        rows: Rows removed, by table.
        mended: Rows that stay and named a withdrawn image, by table.
        files: Files deleted or mended, by place and kind.
        coresets: What each coreset lost.
        runs: Trained runs that have (``yes``) or may have (``perhaps``) seen it.
        reports: Likewise.
        exports: What was written elsewhere with it, or perhaps with it.
        finished: Whether everything was removed.
    """

    number: str
    at: str
    reason: str
    kind: str
    counts: dict[str, int]
    rows: dict[str, int]
    mended: dict[str, int]
    files: list[dict[str, Any]]
    coresets: list[dict[str, Any]]
    runs: dict[str, str]
    reports: dict[str, str]
    exports: list[dict[str, Any]]
    finished: bool = False
    not_reached: list[str] = field(default_factory=lambda: list(NOT_REACHED))

    @classmethod
    def of(
        cls,
        number: str,
        at: str,
        reason: str,
        images: WithdrawnImages,
        rows: dict[str, tuple[int, int]],
        files: list[dict[str, Any]],
        seen: Witnesses,
    ) -> "Receipt":
        """Put a receipt together."""
        return cls(
            number,
            at,
            reason,
            images.kind,
            {
                "images": images.images,
                "exact_copies": images.copies,
                "groups": len(images.traces.groups),
                "in_quarantine": images.waiting,
            },
            {place: lost for place, (lost, _) in rows.items() if lost},
            {place: mended for place, (_, mended) in rows.items() if mended},
            files,
            seen.coresets,
            {place: answer for place, answer in seen.runs.items() if answer != NO},
            {place: answer for place, answer in seen.reports.items() if answer != NO},
            seen.exports,
        )

    def describe(self) -> str:
        """Say it in words."""
        done = "removed" if self.finished else "would remove"
        counts = self.counts
        copies = counts["exact_copies"]
        also = f", {copies} of them exact copies under other ids" if copies else ""
        lines = [
            f"{self.number}: {done} {counts['images']} image(s){also}, "
            f"{counts['in_quarantine']} row(s) in quarantine"
        ]
        lines += [f"  {place}: {count} row(s)" for place, count in self.rows.items()]
        lines += [f"  {place}: {count} row(s) mended" for place, count in self.mended.items()]
        lines += [
            f"  {one['place']}: {one['files']} file(s) {one['how']} ({one['what']})"
            for one in self.files
        ]
        lines += [f"  {_describe_coreset(one)}" for one in self.coresets]
        for what, found in (("trained", self.runs), ("report", self.reports)):
            lines += [f"  {what}: {place} {_SEEN[answer]} it" for place, answer in found.items()]
        lines += [
            f"  export: '{one['to']}' ({one['form']} of {one['coreset']}, {one['at'][:10]}) "
            f"{_SEEN[one['seen']]} it: delete it there"
            for one in self.exports
        ]
        lines += [f"  not reached: {text}" for text in self.not_reached]
        return "\n".join(lines)


_SEEN = {"yes": "has seen", "perhaps": "may have seen"}


def _describe_coreset(one: dict[str, Any]) -> str:
    quotas = "; ".join(
        f"cluster {quota['cluster']}{_stratum(quota)} has {quota['left']} of its {quota['quota']}"
        for quota in one["quotas"][:5]
    )
    more = len(one["quotas"]) - 5
    rest = f"; {more} more" if more > 0 else ""
    return (
        f"coresets/{one['name']}: {one['chosen']} chosen image(s) go, {one['left']} of "
        f"{one['budget']} are left{f' ({quotas}{rest})' if quotas else ''}"
    )


def _stratum(quota: dict[str, Any]) -> str:
    return f" ({quota['stratum']})" if "stratum" in quota else ""
