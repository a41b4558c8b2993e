import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion import archives
from echostill.curation.ingestion.archives import Passed, key_of, read_archive
from echostill.curation.ingestion.keys import reveal
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.tables.storage import Storage


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
    assert found[0].values == {"organ": "liver", "device": "X", "patient": "7"}
    assert found[1].values == found[2].values == {"organ": "lung"}
    assert found[3].values == {}
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


def test_an_archive_without_images_is_said(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar(("notes.txt", b"text")))
    (empty,) = read_all(tmp_path)
    assert "is an archive without images" in empty.message


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


# --- keys with dots, zip, archives inside archives ------------------------------------------------


def zipped(*members):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return sink.getvalue()


def about(number):
    return json.dumps({"PatientID": f"P{number}", "Label": f"L{number}"}).encode()


@pytest.mark.parametrize("pack", [tar, zipped])
@pytest.mark.parametrize("first", ["picture", "json"])
@pytest.mark.parametrize(
    ("picture", "told"),
    [
        ("1.2.840.99.{}.png", "1.2.840.99.{}.json"),
        ("img_{}.png", "img_{}.png.json"),
        ("dr.smith.visit.{}.png", "dr.smith.visit.{}.json"),
        ("d.ir/7.{}.left.png", "d.ir/7.{}.json"),
        ("{}.left.png", "{}.json"),
    ],
)
def test_a_json_belongs_to_the_image_whose_name_it_has(pack, first, picture, told):
    pairs = []
    for number in range(12):
        pair = [(picture.format(number), png(number)), (told.format(number), about(number))]
        pairs += pair if first == "picture" else pair[::-1]
    found = members_of(pack(*pairs))
    assert {member.name: member.values for member in found} == {
        picture.format(number): {"patient": f"P{number}", "label": f"L{number}"}
        for number in range(12)
    }


def test_the_closest_json_counts():
    data = tar(
        *(("0.json", b'{"label": "far"}'), ("0.left.png", png()), ("0.right.png", png(1))),
        ("0.left.json", b'{"label": "near"}'),
    )
    assert {member.name: member.values["label"] for member in members_of(data)} == {
        "0.left.png": "near",
        "0.right.png": "far",
    }


def test_dotted_names_without_json_do_not_fill_the_memory(monkeypatch):
    """By WebDataset's rule they all have the key '1'."""
    monkeypatch.setattr(archives, "_WAITING", 5)
    read = []
    real = archives._member
    monkeypatch.setattr(
        archives, "_member", lambda entry, *rest: read.append(entry.name) or real(entry, *rest)
    )
    data = tar(*((f"1.2.{number}.png", png(number)) for number in range(40)))
    given = 0
    for given, member in enumerate(read_archive(SourceFile("a.tar", data=data), Limits()), 1):
        assert member.name == f"1.2.{given - 1}.png"
        assert len(read) - given <= 5
    assert given == 40


def test_what_an_archive_holds_beside_is_counted():
    passed = Passed()
    data = tar(
        *(("0.png", png()), ("0.txt", b"a caption"), ("0.cls", b"3"), ("0.json", b'{"age": 4}')),
        *(("1.txt", b"another"), ("DICOMDIR", b"x"), ("._0.png", b"macOS"), ("notes", b"text")),
        *(("2.json", b"{}"), ("b.rar", b"Rar!"), ("report.docx", zipped(("a.png", png())))),
    )
    assert [m.name for m in read_archive(SourceFile("a.tar", data=data), Limits(), passed)] == [
        "0.png"
    ]
    assert {kind: number for kind, number in passed.members.items() if number} == {
        ".txt": 2,
        ".cls": 1,
        "DICOMDIR": 1,
        "hidden files": 1,
        "without a suffix": 1,
        ".json": 1,
        ".rar (not read)": 1,
        ".docx": 1,
    }
    assert passed.keys == {"age"}


def test_zip_files_are_read_as_folders(tmp_path):
    inner = zipped(("deep/0.png", png(1)), ("deep/0.json", b'{"organ": "Liver"}'))
    plain = zipped(("a/0.png", png()), ("inner.zip", inner), ("notes.pdf", b"%PDF"))
    (tmp_path / "study.zip").write_bytes(plain)
    (tmp_path / "tar.zip").write_bytes(zipped(("t.tar.xz", tar(("0.png", png(2)), mode="w:xz"))))
    (tmp_path / "letter.docx").write_bytes(zipped(("word/picture.png", png(3))))
    rows = read_all(tmp_path)
    assert {row["source"]: row["organ"] for row in rows} == {
        "study.zip/a/0.png": "",
        "study.zip/inner.zip/deep/0.png": "liver",
        "tar.zip/t.tar.xz/0.png": "",
    }


def test_members_of_a_zip_that_cannot_be_read_cost_one_row_each():
    data = bytearray(zipped(("0.png", png()), ("1.png", png(1)), ("2.png", png(2))))
    place = data.index(b"1.png") + 5
    data[place + 40 : place + 60] = b"x" * 20
    secret = bytearray(zipped(("3.png", png(3)), ("4", png(4))))
    for mark in (b"PK\1\2", b"PK\3\4"):
        at = -1
        while (at := secret.find(mark, at + 1)) >= 0:
            secret[at + (8 if mark == b"PK\1\2" else 6)] |= 1
    found = {member.name: member.problem for member in members_of(bytes(data))}
    assert [name for name, problem in found.items() if not problem] == ["0.png", "2.png"]
    assert "damaged in its archive" in found["1.png"]
    passed = Passed()
    (locked,) = read_archive(SourceFile("a.zip", data=bytes(secret)), Limits(), passed)
    assert locked.problem == "is encrypted in an archive"
    assert passed.members["encrypted files"] == 1
    links = zipped(("../out.png", png()), ("big.png", bytes(50_000)))
    found = {member.name: member.problem for member in members_of(links, max_bytes=10_000)}
    assert "leads out of its archive" in found["../out.png"]
    assert "max_bytes=10000" in found["big.png"]


def test_a_cut_off_zip_is_said(tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped(("0.png", png()))[:-30])
    (failure,) = read_all(tmp_path)
    assert "is a damaged or truncated archive from the beginning" in failure.message


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_packed_archives_are_told_by_name_and_by_content(tmp_path, mode):
    data = tar(("0.png", png()), mode=mode)
    ending = mode.partition(":")[2]
    for name in (f"a.tar.{ending}", f"b.T{ending[:2].upper()}2" if ending == "bz2" else "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(data)
        (row,) = read_all(folder / name)
        assert row["source"] == f"{name}/0.png"


def test_what_the_user_says_of_an_archive_holds_for_its_members(tmp_path):
    (tmp_path / "a.zip").write_bytes(
        zipped(("0.png", png()), ("1.png", png(1)), ("1.json", b'{"group": "own"}'))
    )
    (tmp_path / "m.csv").write_text("file,Group,organ\na.zip,P7,Liver\n")
    first, second = read_all(tmp_path / "m.csv")
    assert (first["group_id"], first["organ"]) == ("P7", "liver")
    assert second["group_id"] == "own"


def test_benchmark_images_are_left_out_however_deep_they_are_packed(tmp_path):
    inner = zipped(("a/0.png", png(1)), ("a/1.png", png(2)), ("2.png.gz", gzip.compress(png(3))))
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "study.zip").write_bytes(zipped(("inner.tar", tar(("deep.zip", inner)))))
    (pool / "packed.png.xz").write_bytes(lzma.compress(png(2)))
    (tmp_path / "benchmark.zip").write_bytes(zipped(("b.png", png(2)), ("c.png", png(3))))
    (row,) = read_all(pool, exclude=(str(tmp_path / "benchmark.zip"),))
    assert row["source"] == "study.zip/inner.tar/deep.zip/a/0.png"
    kept = read_all(tmp_path / "benchmark.zip", exclude=(str(pool),))
    assert kept == [] or all(isinstance(item, Failure) for item in kept)


def test_names_inside_archives_are_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sixteen bytes or more")
    inner = zipped(("a/0.png", png(1)))
    (tmp_path / "study.zip").write_bytes(zipped(("inner.tar", tar(("deep.zip", inner)))))
    settings = IngestSettings(source=str(tmp_path))
    name = "study.zip/inner.tar/deep.zip/a/0.png"
    hashed = Pseudonymiser(b"sixteen bytes or more", hidden=True).name(name)
    assert reveal(settings, Storage(str(tmp_path / "pool")), [hashed]) == {hashed: name}


def speckled(seed=0):
    """A picture that looks like ultrasound: large, grey and speckled, on black."""
    pixels = np.clip(60 * np.random.default_rng(seed).rayleigh(1.0, (160, 200)), 0, 255)
    pixels[:, :40] = 0
    sink = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def disc():
    """Members of a disc with its viewer: three pictures of ultrasound, four of the viewer."""
    return (
        ("DICOMDIR", b""),
        ("EXPORT/1.png", speckled(1)),
        ("VIEWER/about.png", png(2)),
        ("VIEWER/logo.png", png(3)),
        ("VIEWER/res/one.png", png(4)),
        ("VIEWER/run.exe", b"MZ"),
        ("VIEWER/shot.png", speckled(5)),
        ("VIEWER/photo.png", png(6)),
        ("logo2.png", speckled(7)),
        ("plain.png", png(8)),
    )


def as_zip(members):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as packed:
        for name, data in members:
            packed.writestr(name, data)
    return sink.getvalue()


@pytest.mark.parametrize("packing", ["folder", "tar", "tgz", "zip"])
def test_the_pictures_of_a_discs_viewer_are_no_rows_and_are_named(tmp_path, packing):
    where = tmp_path / "disc"
    if packing == "folder":
        for name, data in disc():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            (where / name).write_bytes(data)
    else:
        where = tmp_path / f"disc.{packing}"
        made = {"tar": lambda: tar(*disc()), "tgz": lambda: tar(*disc(), mode="w:gz")}
        where.write_bytes(made.get(packing, lambda: as_zip(disc()))())
    read = read_all(where)
    begin = "" if packing == "folder" else f"disc.{packing}/"
    rows = {item["source"].removeprefix(begin) for item in read if isinstance(item, dict)}
    assert rows == {"EXPORT/1.png", "VIEWER/shot.png", "plain.png"}
    lost = {item.source.removeprefix(begin) for item in read if isinstance(item, Failure)}
    assert lost == {name for name, _ in disc() if name.endswith(".png")} - rows
    assert {item.error_class for item in read if isinstance(item, Failure)} == {"NoImageError"}


def test_beside_a_page_of_its_own_a_data_set_is_kept(tmp_path):
    for name, data in (("README.html", b"<html>"), ("1.png", png(1)), ("small.png", png(2))):
        (tmp_path / name).write_bytes(data)
    assert all(isinstance(item, dict) for item in read_all(tmp_path))


def test_a_picture_that_is_named_as_a_source_is_read_whatever_it_is_called(tmp_path):
    (tmp_path / "logo.png").write_bytes(png())
    assert [item["source"] for item in read_all(tmp_path / "logo.png")] == ["logo.png"]
