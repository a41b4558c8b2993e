import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from echostill.curation.deidentification.frames import DeidentifySettings
from echostill.curation.ingestion.archives import key_of, read_archive
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def png(seed=0):
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def tar(*members, mode="w"):
    """Pack (name, bytes) pairs, or whole headers."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def members_of(data, **limits):
    return list(read_archive(SourceFile("a.tar", data=data), Limits(**limits)))


def read_all(path, **values):
    plain = DeidentifySettings(pixels="off")
    settings = IngestSettings(source=str(path), deidentify=plain, **values)
    return [item for source in list_sources(settings) for item in read_source(source, settings)]


def test_keys_are_the_path_up_to_the_first_dot():
    assert key_of("a/b.c/000.seg.png") == "a/b.c/000"
    assert key_of("000.json") == "000"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_images_come_with_the_json_of_their_key(mode):
    about = json.dumps({"organ": "liver", "device": "X", "patient": 7, "age": 40, "label": None})
    data = tar(
        ("000.png", png(1)),
        ("000.json", about.encode()),
        ("000.txt", b"a caption"),
        ("001.json", b'{"organ": "lung"}'),
        ("001.left.png", png(2)),
        ("001.right.png", png(3)),
        ("dir/002.png", png(4)),
        mode=mode,
    )
    found = members_of(data)
    assert [member.name for member in found] == [
        "000.png",
        "001.left.png",
        "001.right.png",
        "dir/002.png",
    ]
    assert found[0].told == {"organ": "liver", "device": "X", "patient": "7"}
    assert found[1].told == found[2].told == {"organ": "lung"}
    assert found[3].told == {}
    assert found[0].data == png(1)


def link(name, kind=tarfile.SYMTYPE, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_members_that_must_not_be_read_have_their_problem():
    data = tar(
        ("good.png", png()),
        ("../out.png", png(1)),
        ("/etc/absolute.png", png(2)),
        ("a/../../b.png", png(3)),
        link("link.png"),
        link("hard.png", tarfile.LNKTYPE, "good.png"),
        link("pipe.png", tarfile.FIFOTYPE),
        ("._shadow.png", b"macOS"),
        ("notes.txt", b"text"),
        ("unnamed", png(4)),
    )
    found = {member.name: member.problem for member in members_of(data)}
    assert {name for name, problem in found.items() if not problem} == {"good.png", "unnamed"}
    for name in ("../out.png", "/etc/absolute.png", "a/../../b.png"):
        assert "leads out of its archive" in found[name]
    for name in ("link.png", "hard.png", "pipe.png"):
        assert "link or device" in found[name]
    assert set(found) == {
        *("good.png", "unnamed", "../out.png", "/etc/absolute.png", "a/../../b.png"),
        *("link.png", "hard.png", "pipe.png"),
    }


def test_an_unreadable_json_keeps_its_images_back():
    """Without it the patient may be unknown, and a split would cut through one."""
    for broken in (b"{", b"[]", b"\xff\xfe", b"[" * 100_000):
        (found,) = members_of(tar(("0.json", broken), ("0.png", png())))
        assert "cannot be read" in found.problem


def test_a_cut_off_archive_gives_what_is_whole_and_then_fails():
    data = tar(("0.png", png()), ("1.png", png(1)))
    names, error = names_of(data[: data.index(b"1.png") + 512 + 100])
    assert names == ["0.png"]
    assert "truncated archive after its member '1.png'" in error
    packed = tar(("0.png", png()), ("1.png", png(1)), mode="w:gz")
    assert "truncated archive" in names_of(packed[: len(packed) // 2])[1]


def names_of(data):
    """Read until the end or the error: the names, and what it says."""
    names = []
    try:
        for member in read_archive(SourceFile("a.tar", data=data), Limits()):
            names.append(member.name)
    except DecodeError as error:
        return names, str(error)
    return names, ""


def test_a_broken_header_in_the_middle_is_no_end():
    data = bytearray(tar(("0.png", png()), ("1.png", png(1)), ("2.png", png(2))))
    place = data.index(b"1.png")
    data[place : place + 512] = b"x" * 512
    names, error = names_of(bytes(data))
    assert names == ["0.png"]
    assert "damaged or truncated archive after its member '0.png'" in error


def test_a_bomb_is_not_unpacked():
    bomb = gzip.compress(tar(("0.png", png()), ("big.png", bytes(3_000_000)), ("1.png", png(1))))
    found = {member.name: member.problem for member in members_of(bomb, max_bytes=100_000)}
    assert list(found) == ["0.png", "big.png", "1.png"]
    assert "max_bytes=100000" in found["big.png"]


def test_rows_of_an_archive(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "key")
    (tmp_path / "train-000.tar").write_bytes(
        tar(
            ("0.png", png(1)),
            ("0.json", b'{"organ": "liver", "patient": "Doe", "id": "u1"}'),
            ("1.png", png(2)),
            ("1.json", b'{"patient": "Doe"}'),
            ("bad.png", b"no image"),
        )
    )
    first, second, bad = read_all(tmp_path, organ="breast")
    assert (first["source"], first["organ"]) == ("train-000.tar/0.png", "liver")
    assert second["organ"] == "breast"
    assert first["group_id"] == second["group_id"]
    assert len({first["image_id"], second["image_id"]}) == 2
    assert isinstance(bad, Failure)
    assert bad.source == "train-000.tar/bad.png"


def test_a_patient_without_a_key_is_no_group(tmp_path):
    """Ingest always has a key; a bare hash of a name could be found by trying."""
    told = b'{"patient": "Doe"}'
    members = [("0.png", png()), ("0.json", told), ("1.png", png(1)), ("1.json", told)]
    (tmp_path / "a.tar").write_bytes(tar(*members))
    first, second = read_all(tmp_path)
    assert first["group_id"] != second["group_id"]


def test_archives_without_images_and_inside_archives_are_said(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar(("notes.txt", b"text")))
    (tmp_path / "b.tar").write_bytes(tar(("inner.tar", tar(("0.png", png())))))
    empty, nested = read_all(tmp_path)
    assert "is an archive without images" in empty.message
    assert "archive inside an archive" in nested.message


def test_benchmark_images_inside_an_archive_are_left_out(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/a.tar").write_bytes(tar(("0.png", png(1)), ("1.png", png(2))))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "list.txt").write_text("b.png\n")
    (row,) = read_all(tmp_path / "pool", exclude=(str(tmp_path / "list.txt"),))
    assert row["source"] == "a.tar/0.png"
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.png").write_bytes(png(1))
    (other / "d.png").write_bytes(png(3))
    kept = read_all(other, exclude=(str(tmp_path / "pool/a.tar"),))
    assert [row["source"] for row in kept] == ["d.png"]
