"""Huge pages are asked for where Linux has them, and nowhere else."""

import os

import pytest

from echostill.platform.computing.memory import KEY, use_huge_pages


@pytest.mark.parametrize(
    ("found", "given", "expected"),
    [
        ("always [madvise] never", None, "1"),
        ("[always] madvise never", None, "1"),
        ("always madvise [never]", None, None),
        (None, None, None),  # another system
        ("always [madvise] never", "0", "0"),
    ],
)
def test_huge_pages_where_there_are_some(found, given, expected, tmp_path, monkeypatch):
    # setenv first: what the call sets is taken back then.
    monkeypatch.setenv(KEY, given or "")
    if given is None:
        monkeypatch.delenv(KEY)
    if found is not None:
        (tmp_path / "enabled").write_text(found)
    use_huge_pages(tmp_path / "enabled")
    assert os.environ.get(KEY) == expected
