import os
import stat
import tempfile

import pytest

from echostill.platform.errors import UsageError
from echostill.platform.tables.user_cache import user_cache


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "all"))
    found = user_cache("derived", "0123")
    assert found == tmp_path / "all" / "echostill" / "derived" / "0123"
    assert stat.S_IMODE((tmp_path / "all" / "echostill").stat().st_mode) == 0o700
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert user_cache() == tmp_path / "home" / ".cache" / "echostill"


def test_a_home_that_cannot_be_written_is_replaced_by_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert user_cache("a") == tmp_path / f"echostill-{os.getuid()}" / "a"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"Not a directory.*set XDG_CACHE_HOME to a folder"):
        user_cache("a")
