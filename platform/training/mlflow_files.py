"""MLflow's files in a store: the database's address, and where artifacts lie.

The store may have any name, and may have been moved or copied since its database was made. MLflow
keeps absolute locations in it: those of a copy would lead into the original.
"""

import hashlib
import os
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from echostill.platform.tables.user_cache import user_cache

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
RUN_FILE = "mlflow.json"  # of a run of ours: where its record is
# What every release of MLflow and SQLAlchemy reads alike in an address of a file; others take `?`
# for the end of the path, and decode `%` or do not.
_PLAIN = re.compile(r"[\w/.,+@=~ -]*")
# Columns that hold locations. A release without one of them has none to mend there.
_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def database_uri(folder: str) -> str:
    """Return the tracking URI of the database in a local folder, whatever the folder's name is.

    A folder whose name cannot stand in such a URI is reached through a link in the user's cache.
    """
    if not _PLAIN.fullmatch(folder):
        link = user_cache("links") / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
        with suppress(FileExistsError):  # the name stands for this folder and no other
            link.symlink_to(folder, target_is_directory=True)
        folder = str(link)
    return f"sqlite:///{folder}/{DATABASE}"


def artifact_location(folder: str) -> str:
    """Return the URI of the artifacts in a local folder."""
    return Path(folder, ARTIFACTS).as_uri()


def repair_locations(folder: str, experiment: str) -> None:
    """Point the locations in a folder's database to the folder, where they point elsewhere.

    MLflow has no call that does so: its documentation leaves it to SQL. Other experiments and
    locations outside of the experiment's former one stay as they are.

    Args:
        folder: Local folder with the database.
        experiment: Name of the experiment whose artifacts lie beside the database.
    """
    database = Path(folder, DATABASE)
    if not database.is_file():
        return
    right = artifact_location(folder)
    with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        columns = {
            (table, column[1])
            for table, _ in _LOCATIONS
            for column in connection.execute(f"PRAGMA table_info({table})")
        }
        if ("experiments", "artifact_location") not in columns:
            return  # the database has just been made, and is empty
        found = connection.execute(
            "SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)
        ).fetchone()
        if found is None or found[0] == right:
            return
        former = str(found[0])
        for table, column in _LOCATIONS:
            if (table, column) in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (right, len(former) + 1, former, len(former) + 1, f"{former}/"),
                )
