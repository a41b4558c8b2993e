"""Folders, archives and archives in them, seen as one tree."""

import io
import tarfile
import zipfile

import pytest

from echostill.eval.unius.download import Download
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import sha256

FILES = {"set/a (1).png": b"first", "set/b.txt": b"second", "__MACOSX/set/._a (1).png": b"x"}


def zipped(files, **options):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(files, mode):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


PACKED = {
    "plain.zip": zipped(FILES),
    "deflated.zip": zipped(FILES, compression=zipfile.ZIP_DEFLATED),
    "plain.tar": tarred(FILES, "w"),
    "packed.tar.gz": tarred(FILES, "w:gz"),
    "outer.zip": zipped({"more/inner.zip": zipped(FILES)}),
    "both.tar.gz": tarred({"more/inner.zip": zipped(FILES)}, "w:gz"),
}


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("folder", [False, True])
def test_the_same_files_however_they_are_packed(name, folder, tmp_path):
    path = tmp_path / "download" / name
    path.parent.mkdir()
    path.write_bytes(PACKED[name])
    with Download(str(path.parent if folder else path)) as files:
        ends = {one.partition("set/")[2]: files.read(one) for one in files.names}
        assert ends == {"a (1).png": b"first", "b.txt": b"second"}
        assert all(one.startswith(f"{name}/") for one in files.names)
        assert files.checksum(name) == sha256(PACKED[name])
        assert files.read(files.names[1]) == b"second"  # also after the checksum was taken


def test_the_digest_depends_on_names_sizes_and_checksums(tmp_path):
    digests = set()
    for number, files in enumerate(({"a": b"1"}, {"b": b"1"}, {"a": b"12"}, {"a": b"2"})):
        path = tmp_path / f"{number}" / "one.zip"
        path.parent.mkdir()
        path.write_bytes(zipped(files))
        with Download(str(path)) as opened:
            digests.add(opened.digest)
    assert len(digests) == 4


def test_a_damaged_member_costs_itself_and_a_damaged_archive_is_named(tmp_path):
    data = bytearray(zipped(FILES))
    data[data.index(b"first")] ^= 255
    path = tmp_path / "one.zip"
    path.write_bytes(data)
    with Download(str(path)) as files:
        with pytest.raises(DecodeError, match="cannot be read"):
            files.read("one.zip/set/a (1).png")
        assert files.read("one.zip/set/b.txt") == b"second"
    path.write_bytes(zipped({"inner.zip": PACKED["plain.zip"][:50]}))
    with pytest.raises(EchostillError, match=r"'one.zip/inner.zip' is damaged or incomplete"):
        Download(str(path))


def test_limits_and_depth(tmp_path):
    path = tmp_path / "one.zip"
    path.write_bytes(PACKED["plain.zip"])
    with Download(str(path), Limits(max_bytes=5)) as files:
        assert files.read("one.zip/set/a (1).png") == b"first"
        with pytest.raises(DecodeError, match="more than allowed"):
            files.read("one.zip/set/b.txt")
    data = PACKED["plain.zip"]
    for _ in range(5):
        data = zipped({"more.zip": data})
    path.write_bytes(data)
    with pytest.raises(EchostillError, match="archives deep"):
        Download(str(path))


def test_names_that_lead_out_stay_names(tmp_path):
    """Nothing is unpacked, so a hostile name reads its own bytes and touches no file."""
    path = tmp_path / "one.zip"
    path.write_bytes(zipped({"../../etc/passwd": b"mine", "/root.txt": b"root"}))
    with Download(str(path)) as files:
        assert all(name.startswith("one.zip/") for name in files.names)
        assert sorted(files.read(name) for name in files.names) == [b"mine", b"root"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.zip"]


def test_what_is_no_download_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="not read as a download"):
        Download(str(tmp_path / "notes.txt"))
    with pytest.raises(UsageError, match=r"there is no '.*notes.tx'. Did you mean 'notes.txt'"):
        Download(str(tmp_path / "notes.tx"))
