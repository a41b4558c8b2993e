import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from echostill.curation.ingestion.manifests.rows import read_manifest
from echostill.platform.errors import UsageError

TABLE = [["file", "patient", "organ"], ["a.png", "P1", "liver"], ["ü/b.png", "P2", ""]]
ROWS = [
    {"file": "a.png", "patient": "P1", "organ": "liver"},
    {"file": "ü/b.png", "patient": "P2", "organ": ""},
]


def separated(separator, end="\n"):
    return "".join(separator.join(row) + end for row in TABLE)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_save_is_read(separator, encoding, end):
    for name in ("m.csv", "m.tsv", "m.TXT"):
        found = read_manifest(name, separated(separator, end).encode(encoding))
        assert list(found.rows()) == ROWS


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"'])
def test_a_stated_separator_is_believed(first):
    found = read_manifest("m.csv", f"{first}\r\n{separated(';')}".encode())
    assert list(found.rows()) == ROWS


def test_a_separator_inside_a_cell_does_not_divide_it():
    text = 'file;patient\n"a;1.png";P1\n"b,2.png";P2\n'
    assert [row["file"] for row in read_manifest("m.csv", text.encode()).rows()] == [
        "a;1.png",
        "b,2.png",
    ]


def rows_of_lines(data):
    """A JSONL row also says what is wrong with it."""
    rows = list(read_manifest("m.jsonl", data).rows())
    assert {row.pop("problem") for row in rows} == {""}
    return rows


def test_other_formats_give_the_same_rows():
    sink = io.BytesIO()
    values = {name: [row[place] for row in TABLE[1:]] for place, name in enumerate(TABLE[0])}
    pq.write_table(pa.table(values), sink)
    lines = "\n".join(json.dumps(row) for row in ROWS)
    assert list(read_manifest("m.parquet", sink.getvalue()).rows()) == ROWS
    assert rows_of_lines(lines.encode()) == ROWS
    assert rows_of_lines(lines.encode("utf-16")) == ROWS


def test_a_list_is_no_table():
    found = read_manifest("l.txt", b"# a comment\na.png\n\nwith, comma.png\n")
    assert (found.columns, list(found.rows())) == (
        None,
        [{"file": "a.png"}, {"file": "with, comma.png"}],
    )


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("file,patient\nGröße.png,1".encode("latin-1"), "not UTF-8 or UTF-16 text: save it as UTF"),
        (b"a.png,P1\nb.png,P2\n", r"no column 'file'.*it has: a.png, P1.*first row names"),
        (b"a.png;P1\nb.png;P2\n", "it has: a.png, P1"),
        (b"", "it has: none"),
        (b'file\n"' + b"x" * 200_000, "quotation mark is never closed"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(data, said):
    with pytest.raises(UsageError, match=said):
        read_manifest("m.csv", data)
