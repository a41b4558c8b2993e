"""Lists of images that people keep in files: read, checked against the pool, joined."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import file_in
from echostill.platform.tables.table import Table, decode_parquet

NAMED = 3  # ids that a message names


def read_images(path: str, key: str) -> pa.Table:
    """Read a CSV or Parquet file; ``image_id`` and ``reason`` are text.

    Args:
        path: Path or URI of the file.
        key: The configuration's key that names it, for messages.

    Raises:
        UsageError: There is no such file, or it is neither CSV nor Parquet.
    """
    storage, name = file_in(path)
    if not storage.exists(name):
        raise UsageError(f"{key}: no file '{path}'.")
    data = storage.read(name)
    try:
        if name.endswith(".parquet"):
            return decode_parquet(data)
        # Ids are text, even if they look like numbers.
        types = {"image_id": pa.string(), "reason": pa.string()}
        return pa_csv.read_csv(
            pa.BufferReader(data), convert_options=pa_csv.ConvertOptions(column_types=types)
        )
    except pa.ArrowInvalid as error:
        raise UsageError(f"{key}: cannot read '{path}': {error}") from None


def in_pool(table: pa.Table, pool: Table, key: str, path: str) -> pa.Table:
    """Return a list with its ids as the pool writes them: lower case, without blanks.

    Raises:
        UsageError: The list has no column image_id, or ids that are not in the pool: a list that
            matches less than it names would leave images in, or out, without a word.
    """
    if "image_id" not in table.column_names:
        return table  # joining it with others says so
    given = table["image_id"].cast(pa.string())
    ids = pc.utf8_lower(pc.utf8_trim_whitespace(given))
    known = pool.read(["image_id"])["image_id"]
    lost = given.filter(pc.invert(pc.is_in(ids, value_set=known.combine_chunks())))
    if len(lost):
        named = ", ".join(f"'{value}'" for value in lost[:NAMED].to_pylist())
        more = ", ..." if len(lost) > NAMED else ""
        raise UsageError(
            f"{key}: {len(lost)} of {table.num_rows} images of '{path}' are not in the pool: "
            f"{named}{more}. Expected whole image ids, as in the column image_id of the pool; take "
            "out what this pool does not hold."
        )
    place = table.column_names.index("image_id")
    return table.set_column(place, "image_id", ids)


def join_images(given: list[pa.Table | None], key: str) -> pa.Table | None:
    """Join tables of images; None if there are none."""
    tables = [table for table in given if table]
    if not tables:
        return None
    names = ["image_id", "reason"]
    for table in tables:
        if "image_id" not in table.column_names:
            raise UsageError(
                f"{key}: expected a column 'image_id'; found: {', '.join(table.column_names)}."
            )
    columns = [
        pa.table(
            {
                name: table[name].cast(pa.string())
                if name in table.column_names
                else pa.repeat(pa.scalar(""), table.num_rows)
                for name in names
            }
        )
        for table in tables
    ]
    return pa.concat_tables(columns).sort_by([(name, "ascending") for name in names])
