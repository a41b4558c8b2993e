import os
import stat

import pytest

from echostill.curation.service.http.token import find_token, token_path
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store


def test_a_token_is_made_once_and_kept_from_others(tmp_path):
    store = Store(str(tmp_path / "store"))
    path = token_path(store, None)
    assert path == tmp_path / "store.token"
    old = os.umask(0)
    try:
        token, made = find_token(path)
    finally:
        os.umask(old)
    assert made
    assert len(token) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert find_token(path) == (token, False)
    assert find_token(tmp_path / "other.token")[0] != token


def test_a_remote_store_has_its_token_in_the_cache(object_store, monkeypatch, tmp_path):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = token_path(Store("s3://hospital/store"), None)
    assert path.parent == tmp_path / "echostill" / "tokens"
    assert token_path(Store("s3://hospital/other"), None) != path
    assert token_path(Store("s3://hospital/store"), str(tmp_path / "x")) == tmp_path / "x"


def test_a_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "t"
    find_token(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        find_token(path)


@pytest.mark.parametrize("text", ["", "short", "two words of some length", "é" * 40])
def test_what_is_no_token_is_refused(tmp_path, text):
    path = tmp_path / "t"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="does not contain a valid token"):
        find_token(path)
