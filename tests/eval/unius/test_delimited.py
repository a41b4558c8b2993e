"""Tables of text as they are distributed."""

import pytest

from echostill.eval.unius.delimited import read_delimited
from echostill.platform.errors import UsageError


def read(text, separator="tell", header="yes"):
    data = text if isinstance(text, bytes) else text.encode()
    return read_delimited("table.csv", data, separator, header)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_separator_is_told_by_the_first_line(mark):
    rows = read(mark.join(["Image_name", "Plane", "Train "]) + "\n" + mark.join(["a ", " b", "1"]))
    assert rows == [{"Image_name": "a", "Plane": "b", "Train": "1"}]


def test_a_doubled_column_keeps_both_values():
    rows = read(";Sex;Age;Sex\nCyprus;M;1,5;1\n;F;2;0", "semicolon")
    assert rows[0] == {"": "Cyprus", "Sex": "M", "Age": "1,5", "Sex.1": "1"}
    assert rows[1]["Sex.1"] == "0"


def test_blanks_of_any_number_separate_and_a_mark_at_the_beginning_is_no_column():
    assert read("\ufeff1.JPG   3\n\n2.JPG\t4 \n", "blanks", "no") == [
        {"column1": "1.JPG", "column2": "3"},
        {"column1": "2.JPG", "column2": "4"},
    ]


@pytest.mark.parametrize("head", ["", "name,label\n"])
def test_a_header_that_may_be_there(head):
    assert read(head + "0000.jpg,1\n", header="maybe") == [{"column1": "0000.jpg", "column2": "1"}]


def test_quotes_line_ends_and_short_lines():
    assert read('a,b,c\r\n"1,5","x ""y""\r\nz"\r\n') == [{"a": "1,5", "b": 'x "y"\r\nz', "c": ""}]


def test_text_that_is_not_utf8():
    assert read("patient,site\n1,M\u00e1laga".encode("cp1252"))[0]["site"] == "Málaga"


def test_too_many_values_and_no_rows_are_said():
    with pytest.raises(UsageError, match=r"'table.csv' row 3 has 3 values"):
        read("a,b\n1,2\n1,2,3")
    with pytest.raises(UsageError, match="has no rows"):
        read("\n \n")
