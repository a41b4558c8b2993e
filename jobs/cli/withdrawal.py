"""The command that withdraws images from a store."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from echostill.jobs.cli.options import JsonOption
from echostill.platform.errors import UsageError

if TYPE_CHECKING:
    from echostill.curation.withdrawal.request import WithdrawalRequest


def add_commands(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("withdraw")(withdraw_command)


def withdraw_command(
    store: Annotated[
        str, typer.Argument(help="Folder or URI of the store, or the YAML configuration of it.")
    ],
    group: Annotated[
        str | None, typer.Option("--group", help="Withdraw a group: its group_id in the pool.")
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option("--patient", help="Withdraw a patient: the id in the files. Needs the key."),
    ] = None,
    issuer: Annotated[
        str, typer.Option("--issuer", help="Who gave the patient's id (IssuerOfPatientID).")
    ] = "",
    image: Annotated[
        str | None, typer.Option("--image", help="Withdraw one image: its image_id.")
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Why; the receipt keeps it. Must not name anybody.")
    ] = "",
    key_file: Annotated[
        str | None,
        typer.Option("--key-file", help="The pool's key; default that of the configuration."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed, and where.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove images from a store, with all that was derived from them in it.

    The command prints and keeps a receipt. If it is interrupted, run it again.

    \b
    Example:
      echostill withdraw runs/quickstart --group lung/pat1 --reason "consent withdrawn"
    """
    from echostill.curation.withdrawal.withdrawing import withdraw

    root, key = _opened(store, key_file)
    wanted = _request(group, patient, issuer, image)
    receipt = withdraw(root, wanted, reason=reason, key=key, dry_run=dry_run)
    print(json.dumps(vars(receipt), indent=1) if as_json else receipt.describe())
    if not dry_run and not as_json:
        print(f"receipt: {root}/withdrawn/receipts/{receipt.number}.json")


def _opened(store: str, key_file: str | None) -> tuple[str, bytes | None]:
    """Return the store and the user's key, where there is one."""
    from echostill.curation.ingestion.settings import read_key_file

    if not store.endswith((".yaml", ".yml")):
        return store, read_key_file(key_file)
    from echostill.curation.ingestion.stage import STAGE

    config = STAGE.load(store)
    return config.store, read_key_file(key_file or config.key_file)


def _request(
    group: str | None, patient: str | None, issuer: str, image: str | None
) -> "WithdrawalRequest | None":
    """Return what is to be withdrawn; None where nothing is named."""
    from echostill.curation.withdrawal.request import GROUP, IMAGE, PATIENT, WithdrawalRequest

    named = [
        *([WithdrawalRequest(GROUP, group)] if group else []),
        *([WithdrawalRequest(PATIENT, patient, issuer)] if patient else []),
        *([WithdrawalRequest(IMAGE, image)] if image else []),
    ]
    if len(named) > 1:
        raise UsageError("give one of --group, --patient and --image.")
    return named[0] if named else None
