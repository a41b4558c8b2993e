import hashlib
import os
import unicodedata

import pytest

from echostill.platform.imaging.files import (
    FileParts,
    SourceFile,
    bucket_of,
    existing_form,
    with_options_first,
)
from echostill.platform.imaging.images import DecodeError

CONTENT = bytes(range(256)) * 40


def test_a_file_and_bytes_are_read_the_same(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    for file in (SourceFile("a", str(tmp_path / "a")), SourceFile("a", data=CONTENT)):
        assert file.read() == CONTENT
        assert file.head() == CONTENT[:4096]
        assert file.sha256() == hashlib.sha256(CONTENT).hexdigest()
        with file.opened() as stream:
            stream.seek(100)
            assert stream.read(2) == CONTENT[100:102]


def test_small_files_are_fetched_at_once(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    file = SourceFile("a", str(tmp_path / "a"))
    assert file.loaded().data == CONTENT
    assert file.loaded(largest=len(CONTENT) - 1) is file
    assert file.loaded().loaded() == file.loaded()


def test_bytes_stay_out_of_repr():
    assert "secret" not in repr(SourceFile("a", data=b"secret"))


def test_larger_files_than_allowed_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    file = SourceFile("a", str(tmp_path / "a"))
    assert file.read(len(CONTENT)) == CONTENT
    with pytest.raises(DecodeError, match="max_bytes=10"):
        file.read(10)


def test_what_cannot_be_read_is_said_in_words(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, said in (
        ("gone", "does not exist"),
        ("pipe", "is not a regular file"),
        (".", "is not a regular file"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        with pytest.raises(DecodeError, match=said):
            SourceFile(name, str(tmp_path / name)).read()


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux")
def test_a_file_that_fails_while_it_is_read():
    for use in (SourceFile.read, SourceFile.head, SourceFile.sha256):
        with pytest.raises(DecodeError, match="cannot be read: Input/output error"):
            use(SourceFile("mem", "/proc/self/mem"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    (tmp_path / "a").chmod(0)
    with pytest.raises(DecodeError, match="cannot be read: Permission denied"):
        SourceFile("a", str(tmp_path / "a")).read()


def test_names_are_found_in_the_other_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "Früh.png") for form in ("NFC", "NFD"))
    (tmp_path / decomposed).write_bytes(b"x")
    assert SourceFile("a", str(tmp_path / composed)).read() == b"x"
    (tmp_path / composed).write_bytes(b"y")
    assert SourceFile("a", str(tmp_path / composed)).read() == b"y"
    assert existing_form("/no/such") == "/no/such"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://b/f/g?region=x&scheme=http", "s3://b?region=x&scheme=http/f/g"),
        ("s3://b?region=x", "s3://b?region=x"),
        ("s3://b/what?.png", "s3://b/what?.png"),
        ("s3://b/f", "s3://b/f"),
    ],
)
def test_options_of_a_uri_go_with_its_bucket(given, expected):
    assert with_options_first(given) == expected


def test_keys_in_buckets_may_hold_what_uris_may_not(tmp_path):
    (tmp_path / "a b#?%é.png").write_bytes(b"x")
    storage, key = bucket_of("file:///tmp/a b#?.png")
    assert (storage.root, key) == ("/", "tmp/a b#?.png")
    assert SourceFile("a", f"file://{tmp_path}/a b#?%é.png").read() == b"x"


@pytest.mark.parametrize("in_memory", [True, False])
def test_parts_of_a_file_are_read_as_one(tmp_path, in_memory):
    (tmp_path / "a").write_bytes(CONTENT)
    whole = SourceFile("a", data=CONTENT) if in_memory else SourceFile("a", str(tmp_path / "a"))
    parts = ((300, 7), (0, 0), (5000, 3000), (10, 1))
    expected = b"".join(CONTENT[start : start + length] for start, length in parts)
    joined = FileParts("part", whole=whole, parts=parts)
    assert joined.read() == expected
    assert joined.head() == expected[:4096]
    assert joined.sha256() == hashlib.sha256(expected).hexdigest()
    with joined.opened() as stream:
        for place, size in ((5, 10), (0, 3), (2999, 20), (3007, 5), (9000, 5)):
            stream.seek(place)
            assert stream.read(size) == expected[place : place + size]
        assert stream.seek(-4, 2) == len(expected) - 4
        assert stream.read() == expected[-4:]
