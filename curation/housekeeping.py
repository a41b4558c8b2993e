"""What a client asks of a store as a whole: list, delete and rename results, withdraw images."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from echostill.curation.connection import Connection, part
from echostill.platform.errors import EchostillError

POLL_SECONDS = 1.0  # between requests for a job


class HousekeepingCalls:
    """Calls of a client on what its service's store holds."""

    _service: Connection

    def holdings(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return what the store holds: sizes, dates, what each was made from and what uses it.

        Args:
            kind: ``coresets``, ``runs``, ``reports``, ``teacher-cache`` or ``sweeps``; default all.
        """
        return list(self._service.get("/v1/holdings", kind=kind)["items"])

    def delete(self, place: str, *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Delete a result, such as ``coresets/half``; ``force`` also where others use it."""
        query = {"dry_run": dry_run, "force": force}
        answer = self._service.request("DELETE", f"/v1/holdings/{_place(place)}", query)
        found: dict[str, Any] = answer.json()
        return found

    def rename(self, place: str, name: str) -> dict[str, Any]:
        """Give a coreset, report or teacher cache another name."""
        return self._service.send("POST", f"/v1/holdings/{_place(place)}/name", {"name": name})

    def waste(self) -> list[dict[str, Any]]:
        """Return what the store does not need: ``place``, ``bytes`` and ``reason``."""
        return list(self._service.get("/v1/waste")["items"])

    def collect(self, places: Sequence[str]) -> dict[str, Any]:
        """Delete some of what the store does not need, as `echostill gc --yes` does."""
        return self._service.send("DELETE", "/v1/waste", {"places": list(places)})

    def withdrawals(self) -> dict[str, Any]:
        """Return the receipts, newest first (``items``), and what is at work (``current``)."""
        return self._service.get("/v1/withdrawals")

    def preview_withdrawal(
        self,
        kind: Literal["image", "group", "patient"],
        value: str,
        *,
        issuer: str = "",
        reason: str = "",
    ) -> dict[str, Any]:
        """Return the receipt that a withdrawal would have; nothing is changed."""
        body = {"kind": kind, "value": value, "issuer": issuer, "reason": reason}
        return self._service.send("POST", "/v1/withdrawals/preview", body)

    def withdraw(
        self,
        kind: Literal["image", "group", "patient"],
        value: str,
        *,
        reason: str,
        issuer: str = "",
        progress: Callable[[str, float], None] | None = None,
    ) -> dict[str, Any]:
        """Remove images from the store with all that was derived from them, and wait for it.

        Args:
            kind: what ``value`` is: an ``image_id``, a ``group_id`` of the pool, or a patient's id
                in the files, for which the service needs the key.
            value: of what is withdrawn.
            reason: why; the receipt keeps it, so it must not name anybody.
            issuer: of a patient's id (DICOM's IssuerOfPatientID).
            progress: called with stage and fraction.

        Returns:
            The receipt.

        Raises:
            EchostillError: It failed or was interrupted; ``finish_withdrawal`` goes on.
        """
        found = self.preview_withdrawal(kind, value, issuer=issuer, reason=reason)
        counts = {name: found["counts"][name] for name in ("images", "in_quarantine")}
        body = {"kind": kind, "value": value, "issuer": issuer, "reason": reason, **counts}
        return self._ended(self._service.send("POST", "/v1/withdrawals", body), progress)

    def finish_withdrawal(
        self, *, progress: Callable[[str, float], None] | None = None
    ) -> dict[str, Any]:
        """Finish a withdrawal that was interrupted, and return its receipt."""
        return self._ended(self._service.send("POST", "/v1/withdrawals/finish"), progress)

    def _ended(
        self, current: dict[str, Any], progress: Callable[[str, float], None] | None
    ) -> dict[str, Any]:
        items: list[dict[str, Any]] = []
        while current["state"] == "running":
            time.sleep(POLL_SECONDS)
            answer = self.withdrawals()
            current, items = answer["current"], answer["items"]
            if progress is not None:
                progress(current["stage"], current["fraction"])
        if current["state"] != "done":
            raise EchostillError(f"the withdrawal {current['state']}: {current['message']}")
        return next(item for item in items if item["number"] == current["message"])


def _place(place: str) -> str:
    kind, _, name = place.partition("/")
    return f"{part(kind)}/{part(name)}"
