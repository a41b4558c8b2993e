"""Whether what a stage records its runs in answers: an MLflow server or database.

MLflow's own client retries for minutes before it says that a server is not there.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from echostill.platform.errors import UsageError
from echostill.platform.lazy import loading
from echostill.platform.preflight.answers import SECONDS, NoAnswerError, ask, within
from echostill.platform.preflight.folders import unwritable

EXPERIMENT = "echostill"
SQLITE_BEGINS = b"SQLite format 3\0"
# MLflow's own settings, for the check alone: a training must outlive a server's restart.
HASTY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{SECONDS:.0f}"}


def mlflow_client(uri: str) -> Any:
    """Return MLflow's client for a tracking URI, without telemetry and set-up messages."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    with loading():
        from mlflow.tracking import MlflowClient

        for name in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return MlflowClient(tracking_uri=uri)  # which imports what speaks to a server of that kind


def check_tracking(uri: str | None, store: str) -> None:
    """Check that runs can be recorded at a tracking URI, without recording anything.

    Args:
        uri: MLflow tracking URI; None for the sqlite file in the store.
        store: The store.

    Raises:
        UsageError: It cannot be reached, is no MLflow server, refuses the credentials, or is a file
            that cannot be written.
    """
    if uri is None:
        if "://" in store and not store.startswith("file://"):
            raise needs_server(store)
    elif uri.startswith("sqlite:"):
        _check_sqlite(uri)
    else:
        _check_server(uri)


def needs_server(store: str) -> UsageError:
    """Return the error for a remote store without a tracking URI."""
    return UsageError(
        f"the store '{store}' is remote, and MLflow's sqlite file cannot live there: "
        "give tracking=http://SERVER:5000 (an MLflow server)."
    )


def _check_server(uri: str) -> None:
    if uri.startswith(("http://", "https://")):
        try:
            ask(uri)
        except NoAnswerError as error:
            raise _unreachable(uri, str(error)) from None
    from mlflow.exceptions import MlflowException

    try:
        with _hasty():
            within(lambda: mlflow_client(uri).get_experiment_by_name(EXPERIMENT))
    except NoAnswerError as error:
        raise _unreachable(uri, str(error)) from None
    except MlflowException as error:
        raise _refused(uri, str(error.error_code), " ".join(error.message.split())) from None
    except Exception as error:  # of a database's driver, or a plugin's
        raise _unreachable(uri, " ".join(str(error).split()) or type(error).__name__) from None


def _refused(uri: str, code: str, message: str) -> UsageError:
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"):
        return UsageError(
            f"MLflow at '{uri}' (tracking) refuses the credentials: expected a user who may write "
            f"the experiment '{EXPERIMENT}'. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    if "error responses" in message:  # the server's own fault, so says the library below MLflow
        status = message.partition("too many ")[2].partition(" ")[0]
        return _unreachable(uri, f"it answers with HTTP status {status or '5xx'}; see its log")
    if code == "ENDPOINT_NOT_FOUND" or "JSON" in message:
        return _unreachable(uri, "what answers there is no MLflow server")
    return _unreachable(uri, message)


def _unreachable(uri: str, reason: str) -> UsageError:
    said = reason if len(reason) <= 240 else f"{reason[:240].rstrip()} ..."
    return UsageError(
        f"cannot record runs in MLflow at '{uri}' (tracking): {said.rstrip('.')}. Expected an "
        "MLflow server: start it (`mlflow server`), correct tracking, or leave it out for an "
        "sqlite file in the store."
    )


def _check_sqlite(uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        file = make_url(uri).database
    except ArgumentError:
        file = None
    if not file:
        raise UsageError(f"tracking='{uri}' names no file: expected sqlite:////FOLDER/mlflow.db.")
    problem = None
    if not os.path.exists(file):
        problem = unwritable(os.path.dirname(file) or ".")
    elif not os.path.isfile(file):
        problem = f"'{file}' is not a file"
    elif not os.access(file, os.R_OK | os.W_OK):
        problem = f"'{file}' cannot be written by this user"
    else:
        with open(file, "rb") as stream:
            begins = stream.read(len(SQLITE_BEGINS))
        if begins not in (b"", SQLITE_BEGINS):
            problem = f"'{file}' is no sqlite file"
    if problem:
        raise UsageError(
            f"cannot record runs in MLflow at '{uri}' (tracking): {problem}. Expected a file that "
            "can be written: correct tracking, or leave it out for one in the store."
        )


@contextmanager
def _hasty() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in HASTY}
    os.environ.update(HASTY)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
