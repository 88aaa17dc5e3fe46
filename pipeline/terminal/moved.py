"""An output folder that was moved: its MLflow store still points to where it was."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

STORE, ARTIFACTS = "mlflow.db", "mlartifacts"
_SQLITE = "sqlite:///"
# where MLflow keeps URIs of artifacts; older versions lack some
_COLUMNS = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


def follow_folder(output: Path) -> None:
    """Let the MLflow store of an output folder point to the artifacts beside it.

    MLflow keeps absolute URIs. Where they are below the ``mlartifacts`` of another output folder,
    this one is that folder, moved or copied, and they are rewritten in one transaction. Nothing
    happens where there is no store yet, or where those artifacts are a place of their own.

    Args:
        output: The output folder, absolute.
    """
    store = output / STORE
    if not store.is_file():
        return
    with closing(sqlite3.connect(store, timeout=20, isolation_level=None)) as database:
        try:
            olds = _elsewhere(database, output)
        except sqlite3.Error:  # no store at all: told where it is used
            return
        for old in olds:
            was = Path(unquote(urlsplit(old).path)).parent
            try:
                _rewrite(database, old, (output / ARTIFACTS).as_uri())
            except sqlite3.Error as error:
                log.warning(
                    "mlflow: %s was moved here from %s, but its store cannot be changed (%s): "
                    "artifacts and models are still looked for there",
                    output,
                    was,
                    error,
                )
                return
            log.info(
                "mlflow: %s was moved here from %s; its store now points to the artifacts here",
                output,
                was,
            )


def _rewrite(database: sqlite3.Connection, old: str, new: str) -> None:
    """Replace the start of all URIs that begin with a place, or of none."""
    database.execute("BEGIN IMMEDIATE")
    try:
        for table, columns in _COLUMNS.items():
            there = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            for column in there.intersection(columns):
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _elsewhere(database: sqlite3.Connection, output: Path) -> list[str]:
    """Places of artifacts, as URIs, that those beside the store are the moved ones of."""
    tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'experiments'")
    if tables.fetchone() is None:
        return []
    found = database.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    here, olds = output / ARTIFACTS, []
    for (uri,) in found:
        place = Path(unquote(urlsplit(uri or "").path))
        if not (uri or "").startswith("file:///") or place.name != ARTIFACTS or place == here:
            continue
        # what is still there without a store beside it is a place of the user's choice
        if not place.exists() or (place.with_name(STORE).exists() and not place.samefile(here)):
            olds.append(uri)
    return olds


def old_output(store: str, output: Path) -> str | None:
    """Where an output folder was when its local store was written down as a URI; else None.

    Args:
        store: URI of an MLflow store.
        output: The output folder, absolute.
    """
    place = Path(store.removeprefix(_SQLITE))
    is_gone = store.startswith(_SQLITE) and place.name == STORE and not place.exists()
    return str(place.parent) if is_gone and place.parent != output else None


def place_in(path: str, old: str, new: str) -> str:
    """A path below an old folder as one below the new; any other as it is."""
    return new + path[len(old) :] if path == old or path.startswith(old + "/") else path
