"""Seventy bad or odd inputs: each gives its rows, or a reason that a person understands."""

import gzip
import io
import json
import os
import struct
import tarfile
import unicodedata
import zlib
from dataclasses import dataclass

import av
import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from echostill.curation import IngestConfig, ingest
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.tables.verify import verify_store

LIMITS = {
    "max_pixels": 1_000_000,
    "max_frames": 500,
    "max_bytes": 5_000_000,
    "deidentify": DeidentifySettings(pixels="off", sources="names"),
}
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Größe é.png") for form in ("NFC", "NFD"))
PATIENT = "SECRET-7"
# What decoders and their kin say of damage; ours say it in the reader's words.
LIBRARY_WORDS = (
    *("numpy", "NoneType", "broadcast", "planar_configuration", "plugin", "pillow:", "Unable to"),
    *("object has no", "unpack requires", "zlib", "Errno", "Invalid data", "bytes not processed"),
    *("decompress", "image file is truncated", "Exception", "Error"),
)
SOME = -1  # at least one: how many frames of a cut film can be saved is the decoder's affair


@dataclass
class Case:
    """A file of the corpus, and what must become of it."""

    content: bytes
    rows: int = 0
    failures: int = 0
    said: str = ""


def good(content, rows=1):
    return Case(content, rows=rows)


def bad(content, said, rows=0, failures=1):
    return Case(content, rows, failures, said)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def forged_png(width, height):
    """A PNG of a few bytes that claims any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def pictures():
    grey, colour = noise(40, 60), noise(40, 60, 3, seed=1)
    palette = Image.fromarray(grey % 4, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    animation = [Image.fromarray(noise(20, 20, seed=seed)) for seed in range(3)]
    turned = Image.Exif()
    turned[0x0112] = 6
    rest = {"save_all": True, "append_images": animation[1:]}
    png, jpeg = saved(grey), saved(noise(90, 90), "JPEG")
    sixteen = (grey.astype(np.uint16) * 100).astype(np.uint16)
    floats = noise(9, 9).astype(np.float32)
    floats[0, 0] = np.nan
    return {
        "sixteen_bits.png": good(saved(sixteen)),
        "sixteen_bits.tif": good(saved(sixteen, "TIFF")),
        "palette.png": good(saved(palette)),
        "one_bit.png": good(saved(Image.fromarray(grey).convert("1"))),
        "transparent.png": good(saved(noise(20, 20, 4))),
        "cmyk.jpg": good(saved(Image.fromarray(colour).convert("CMYK"), "JPEG")),
        "progressive.jpg": good(saved(colour, "JPEG", progressive=True)),
        "turned.jpg": good(saved(Image.fromarray(colour), "JPEG", exif=turned)),
        "animated.gif": good(saved(animation[0], "GIF", **rest), 3),
        "animated.png": good(saved(animation[0], "PNG", **rest), 3),
        "animated.webp": good(saved(animation[0], "WEBP", lossless=True, **rest), 3),
        "pages.tiff": good(saved(animation[0], "TIFF", **rest), 3),
        "one_pixel.bmp": good(saved(noise(1, 1), "BMP")),
        "thin.png": good(saved(noise(1, 3000))),
        "black.png": good(saved(np.zeros((30, 30), np.uint8))),
        "some_nan.tif": good(saved(floats, "TIFF")),
        "all_nan.tif": bad(saved(np.full((4, 4), np.nan, np.float32), "TIFF"), "no finite value"),
        "jpeg_called.png": good(jpeg),
        "png_called.dcm": good(saved(noise(33, 44, seed=2))),
        "png_without_suffix": good(saved(noise(22, 44, seed=3))),
        COMPOSED: good(saved(noise(12, 13, seed=4))),
        "sub folder/#?%&\t'\".png": good(saved(noise(12, 13, seed=5))),
        "empty.png": bad(b"", "is empty"),
        "empty.dcm": bad(b"", "is empty"),
        "empty.mp4": bad(b"", "is empty"),
        "empty.tar": bad(b"", "is empty"),
        "text.png": bad(b"<html>404</html>", "not an image in a known format"),
        "zeros.jpg": bad(bytes(5000), "not an image in a known format"),
        "truncated.png": bad(png[: len(png) // 2], "damaged or truncated"),
        "truncated.jpg": bad(jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "truncated.tif": bad(saved(grey, "TIFF")[:-900], "damaged or truncated"),
        "truncated.bmp": bad(saved(grey, "BMP")[:-900], "damaged or truncated"),
        "head_only.gif": bad(b"GIF89a\x05\0\x05\0", "not an image in a known format"),
        "broken_checksum.png": bad(png.replace(b"IDAT", b"IDAT\0", 1), "damaged or truncated"),
        "mask.png": bad(saved(_mask()), "a mask or label map, no picture"),
        "labels.tif": bad(saved(_mask() // 100, "TIFF"), "only the values 0, 2 in even areas"),
        "picture.jxl": bad(b"\xff\x0a" + bytes(90), "JPEG XL picture, which is not read"),
        "picture.jp2": good(saved(grey, "JPEG2000")),
        "picture.avif": good(saved(colour, "AVIF")),
        "bomb.png": bad(forged_png(60_000, 60_000), "max_pixels=1000000"),
        "no_size.png": bad(forged_png(0, 10), ""),
        "postscript.png": bad(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image in a known format"),
        "vector.svg.png": bad(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    }


def _mask():
    """A lesion's outline, filled, as data sets have it beside each image."""
    y, x = np.mgrid[:60, :80]
    return ((y - 30) ** 2 + (x - 40) ** 2 < 300).astype(np.uint8) * 255


def cines(dicom):
    grey, several = noise(40, 48)[None], noise(3, 40, 48)
    numbers = iter(range(1, 99))

    def file(*values, **elements):
        uid = f"1.2.840.{next(numbers)}"
        return dicom(*values, SOPInstanceUID=uid, StudyInstanceUID=uid, **elements)

    def packed(syntax):
        dataset = pydicom.dcmread(io.BytesIO(file(several)))
        dataset.compress(syntax, generate_instance_uid=False)
        return dataset, list(generate_frames(dataset.PixelData, number_of_frames=3))

    jls, frames = packed(JPEGLSLossless)
    jls.PixelData = encapsulate([frames[0], frames[1][:50], frames[2]])
    rle, segments = packed(RLELossless)
    rle.PixelData = encapsulate(segments, has_bot=False)[:-30]
    jpegs = [saved(frame, "JPEG") for frame in several]
    items = b"".join(_item(piece) for jpeg in jpegs for piece in (jpeg[:200], jpeg[200:]))
    forged = frames[0].replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 65_000, 65_000), 1)
    whole = file(several)
    window = {"WindowCenter": 0, "WindowWidth": 400}
    signed = (several.astype(np.int16) - 128) * 100
    unknown = file(grey, "MONOCHROME2", "1.2.3.4.5", PixelData=encapsulate([b"12"]))
    return {
        "signed.dcm": good(file(signed, **window), 3),
        "inverted_big_endian.dcm": good(file(grey, "MONOCHROME1", ExplicitVRBigEndian)),
        "no_preamble.dcm": good(file(grey)[132:]),
        "dicom_called.jpg": good(file(grey)),
        "zero_frames.dcm": good(file(grey, NumberOfFrames="0")),
        "more_than_stated.dcm": good(file(several, NumberOfFrames="1"), 3),
        "broken_offset_table.dcm": good(
            file(
                several,
                "MONOCHROME2",
                JPEGBaseline8Bit,
                PixelData=_item(struct.pack("<3I", 9, 4_000_000_000, 1)) + items,
            ),
            3,
        ),
        "nothing_of_bits.dcm": good(
            file(several, BitsStored=None, HighBit=None, SamplesPerPixel=None), 3
        ),
        "no_syntax.dcm": good(_without_syntax(file(grey))),
        "no_end.dcm": good(
            file(
                several,
                "MONOCHROME2",
                JPEGBaseline8Bit,
                PixelData=encapsulate([jpeg[:-2] for jpeg in jpegs]),
            ),
            3,
        ),
        "cut_in_the_scan.dcm": bad(
            file(
                several,
                "MONOCHROME2",
                JPEGBaseline8Bit,
                PixelData=encapsulate([jpegs[0], jpegs[1][:-200], jpegs[2]]),
            ),
            "the frame is cut off",
            rows=2,
        ),
        "window_beside.dcm": bad(
            file(signed[:1], WindowCenter=30_000, WindowWidth=100), "is blank in its window"
        ),
        "colours_under_grey.dcm": bad(
            file(
                grey[:, :40, :48],
                "MONOCHROME2",
                JPEGBaseline8Bit,
                PixelData=encapsulate([saved(noise(40, 48, 3), "JPEG")]),
            ),
            "picture of 3 components, and the header says 1",
        ),
        "makers_own.dcm": bad(
            file(grey[:, :4, :4], SOPClassUID="1.2.840.113543.6.6.1.3.10002"), "are a preview"
        ),
        "no_pixels.dcm": bad(file(), "holds no pixel data"),
        "no_rows.dcm": bad(file(grey, Rows=0), "has no pixels: it is 48 x 0"),
        "negative_frames.dcm": bad(file(grey, NumberOfFrames="-5"), "states -5 frames"),
        "wrong_length.dcm": bad(file(grey, Rows=80), "less than one frame"),
        "two_thousand_million_frames.dcm": bad(
            file(several, NumberOfFrames="2000000000"), "holds 3 of the 2000000000 frames", rows=3
        ),
        "too_many_frames.dcm": bad(file(np.zeros((600, 2, 2), np.uint8)), "max_frames=500"),
        "truncated.dcm": bad(whole[: len(whole) - 2500], "holds 1 of the 3 frames", rows=1),
        "truncated_header.dcm": bad(whole[:300], "holds no pixel data"),
        "garbage.dcm": bad(whole[:140] + bytes(range(256)) * 9, ""),
        "preamble_only.dcm": bad(bytes(128) + b"DICM", ""),
        "damaged_frame.dcm": bad(_bytes(jls), "the frame cannot be decoded", rows=2),
        "cut_run_length.dcm": bad(_bytes(rle), "the frame cannot be decoded", rows=2),
        "no_fragments.dcm": bad(
            file(grey, "MONOCHROME2", RLELossless, PixelData=_item(b"")),
            "no fragments",
        ),
        "forged_size.dcm": bad(
            file(grey, "MONOCHROME2", JPEGLSLossless, PixelData=encapsulate([forged])),
            "holds compressed pixels of 65000 x 65000",
        ),
        "not_lossless.dcm": bad(
            file(grey, "MONOCHROME2", JPEGLosslessSV1, PixelData=encapsulate([b"no JPEG at all"])),
            "no readable beginning",
        ),
        "unknown_syntax.dcm": bad(unknown, "transfer syntax '1.2.3.4.5', which is not read"),
        "twelve_bits.dcm": bad(
            file(
                grey.astype(np.uint16),
                "MONOCHROME2",
                JPEGExtended12Bit,
                PixelData=encapsulate([b"12"]),
                BitsStored=12,
                HighBit=11,
            ),
            "pip install pylibjpeg",
        ),
        "film.dcm": bad(
            file(grey, "MONOCHROME2", "1.2.840.10008.1.2.4.102", PixelData=encapsulate([b"12"])),
            "damaged or truncated video",
        ),
        "unknown_colours.dcm": bad(file(noise(1, 9, 9, 3), "CMYK"), "'CMYK'"),
        "deflated_bomb.dcm": bad(
            file(np.zeros((9, 800, 800), np.uint8), "MONOCHROME2", DeflatedExplicitVRLittleEndian),
            "unpacks to more bytes than allowed",
        ),
        "large.dcm": bad(
            file(np.zeros((1, 1, 1), np.uint8), Rows=9000, Columns=9000), "max_pixels"
        ),
    }


def _without_syntax(data):
    """Take (0002,0010) out of a file's meta information."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    length = 144 + int.from_bytes(data[140:144], "little")
    del dataset.file_meta.TransferSyntaxUID
    sink = io.BytesIO()
    sink.write(bytes(128) + b"DICM")
    pydicom.filewriter.write_file_meta_info(sink, dataset.file_meta, enforce_standard=False)
    return sink.getvalue() + data[length:]


def _item(data):
    data += b"\0" * (len(data) % 2)
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def _bytes(dataset):
    sink = io.BytesIO()
    dataset.save_as(sink)
    return sink.getvalue()


def film(container, codec, layout="yuv420p"):
    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, layout
        for level in range(20, 220, 20):
            pixels = np.full((48, 64, 3), level, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return sink.getvalue()


def films_and_volumes():
    mp4, avi = film("mp4", "libx264"), film("avi", "mjpeg", "yuvj420p")
    volume = nibabel.Nifti1Image(noise(30, 20, 4), np.eye(4)).to_bytes()
    words = nibabel.Nifti1Image(noise(30, 20, 4).astype(np.float32), np.eye(4))
    some = noise(30, 20, 4).astype(np.float32)
    some[:, :, 2] = np.nan
    labels = np.zeros((30, 20, 4), np.int16)
    labels[5:20, 5:15, 1:] = 2
    huge = bytearray(volume)
    struct.pack_into("<4h", huge, 40, 3, 32_000, 32_000, 4)
    head = b"ObjectType = Image\nDimSize = 9 8 3\nElementType = MET_UCHAR\n"
    return {
        "film.mp4": good(mp4, 10),
        "film_called.png": good(avi, 10),
        "truncated.mp4": bad(mp4[: len(mp4) // 2], "damaged or truncated video"),
        "truncated.avi": Case(avi[: avi.index(b"movi") + 4000], SOME, SOME),
        "text.avi": bad(b"no film", "damaged or truncated video"),
        "volume.nii": good(volume, 4),
        "volume.nii.gz": good(gzip.compress(words.to_bytes()), 4),
        "slice_of_nan.nii": bad(
            nibabel.Nifti1Image(some, np.eye(4)).to_bytes(), "no finite value", rows=3
        ),
        "all_nan.nii": bad(
            nibabel.Nifti1Image(np.full((3, 3, 3), np.nan, np.float32), np.eye(4)).to_bytes(),
            "without a finite value",
        ),
        "labels.nii.gz": bad(
            gzip.compress(nibabel.Nifti1Image(labels, np.eye(4)).to_bytes()), "label map"
        ),
        "volume.nrrd": good(
            b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 9 8 3\nencoding: raw\n\n" + bytes(216), 3
        ),
        "truncated.nii": bad(volume[:-700], "holds 2 of the 4 slices", rows=2),
        "truncated.nii.gz": bad(gzip.compress(volume)[:200], "damaged or truncated"),
        "huge.nii": bad(bytes(huge), "max_pixels"),
        "volume.mha": good(head + b"ElementDataFile = LOCAL\n" + bytes(9 * 8 * 3), 3),
        "elsewhere.mhd": bad(head + b"ElementDataFile = other.raw\n", "in another file"),
    }


def archives():
    png = saved(noise(21, 22, seed=8))

    def tar(*members, mode="w"):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode=mode) as archive:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return sink.getvalue()

    pair = tar(("0.png", png), ("1.png", saved(noise(21, 22, seed=9))))
    return {
        "shard.tar": good(tar(("0.png", png), ("0.json", b'{"organ": "liver"}'))),
        "member.tar": bad(tar(("0.png", png), ("1.png", b"no image")), "known format", rows=1),
        "climbing.tar": bad(tar(("../../0.png", png)), "leads out of its archive"),
        "absolute.tar": bad(tar(("/etc/0.png", png)), "leads out of its archive"),
        "sidecar.tar": bad(tar(("0.png", png), ("0.json", b"{")), "cannot be read"),
        "nested.tar": bad(
            tar(("0.tar", tar(("0.tar", tar(("0.tar", pair)))))), "archive inside 3 others"
        ),
        "bomb.tar.gz": bad(gzip.compress(tar(("0.png", bytes(9_000_000)))), "max_bytes"),
        "truncated.tar": bad(pair[: pair.index(b"1.png") + 600], "truncated archive", rows=1),
        "nothing.tar": bad(tar(("notes.txt", b"text")), "archive without images"),
    }


@pytest.fixture(scope="module")
def cases(dicom):
    return {**pictures(), **cines(dicom), **films_and_volumes(), **archives()}


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture
def corpus(cases, tmp_path):
    """The files, with links, pipes and unreadable ones, and a manifest with faults of its own."""
    root = tmp_path / "corpus"
    for name, case in cases.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(case.content)
    (tmp_path / "outside.png").write_bytes(saved(noise(8, 8, seed=20)))
    (tmp_path / "outside").mkdir()
    (root / "to_itself.png").symlink_to("to_itself.png")
    (root / "to_nothing.png").symlink_to("gone.png")
    (root / "to_outside.png").symlink_to(tmp_path / "outside.png")
    (root / "circle").symlink_to(root)
    os.mkfifo(root / "pipe.png")
    (root / os.fsdecode(b"latin-1 \xfc.png")).write_bytes(saved(noise(8, 8, seed=21)))
    lists = tmp_path / "lists"
    lists.mkdir()
    for number in range(3):
        (lists / f"{number}.png").write_bytes(saved(noise(10, 10, seed=30 + number)))
    (lists / DECOMPOSED).write_bytes(saved(noise(10, 10, seed=40)))
    rows = [
        {"file": "0.png", "id": "a"},
        {"file": "0.png", "id": "b"},
        {"file": "1.png", "id": "a"},
        {"file": "2.png"},
        {"file": "", "id": "c"},
        {"file": "../outside.png", "id": "d"},
        {"file": "gone.png", "id": "e"},
        {"file": COMPOSED, "id": "f"},
        {"file": "/proc/self/mem", "id": "g"},
        {"file": "nul\0.png", "id": "h"},
    ]
    lines = [json.dumps(row) for row in rows]
    (lists / "list.jsonl").write_text("\n".join([*lines, "no JSON"]))
    return root, lists / "list.jsonl"


ODD_FILES = {
    "to_itself.png": "symbolic links",
    "to_nothing.png": "leads nowhere",
    "to_outside.png": "leads out of its folder",
    "circle": "is a link to a folder",
    "pipe.png": "not a regular file",
}
ODD_LINES = {
    "0.png": "listed more than once",
    "1.png": "has the same id as '0.png'",
    "2.png": "has no id",
    "row 5": "names no file",
    "../outside.png": "outside of its folder",
    "gone.png": "does not exist",
    "proc/self/mem": "cannot be read",
    "nul\0.png": "NUL",
    "row 11": "is no JSON object",
}


def test_there_are_enough(cases):
    assert len(cases) + len(ODD_FILES) + len(ODD_LINES) >= 60


def wrong_with(case, items, place):
    """Return what an input's rows and failures are not as they must be."""
    rows = [item for item in items if isinstance(item, dict)]
    said = [item.message for item in items if isinstance(item, Failure)]
    wrong = []
    for count, expected in ((len(rows), case.rows), (len(said), case.failures)):
        if count != expected if expected != SOME else not count:
            wrong.append(f"{len(rows)} rows, {len(said)} failures: {said}")
    for message in said:
        if case.said not in message:
            wrong.append(f"'{case.said}' is not in '{message}'")
        unwanted = ("unforeseen", PATIENT, place, *LIBRARY_WORDS)
        wrong += [f"'{word}' in '{message}'" for word in unwanted if word in message]
    for row in rows:
        if decode_staged(row["image"]).shape[:2] != (row["height"], row["width"]):
            wrong.append(f"{row['source']} is staged in another size")
    return wrong


def test_each_gives_its_rows_or_its_reason(cases, corpus):
    root, _ = corpus
    settings = IngestSettings(source=str(root), **LIMITS)
    found = {source.name: read_source(source, settings) for source in list_sources(settings)}
    assert {unicodedata.normalize("NFC", name) for name in cases} <= set(found)
    wrong = {name: wrong_with(case, found.pop(name), str(root)) for name, case in cases.items()}
    assert {name: said for name, said in wrong.items() if said} == {}
    odd = {name: items for name, items in found.items() if name in ODD_FILES}
    for name, said in ODD_FILES.items():
        (failure,) = odd.pop(name)
        assert said in failure.message
    (latin,) = [items for name, items in found.items() if name.startswith("latin-1")]
    assert isinstance(latin[0], dict)


def test_each_line_of_a_manifest_gives_its_row_or_its_reason(corpus):
    _, manifest = corpus
    settings = IngestSettings(source=str(manifest), **LIMITS)
    items = [item for source in list_sources(settings) for item in read_source(source, settings)]
    assert len(items) == 11
    assert [item["source"] for item in items if isinstance(item, dict)] == ["0.png", COMPOSED]
    said = {item.source: item.message for item in items if isinstance(item, Failure)}
    assert set(said) == set(ODD_LINES)
    for name, reason in ODD_LINES.items():
        assert reason in said[name]
        assert "unforeseen" not in said[name]


def test_one_ingest_of_everything_accounts_for_everything(ray_cluster, corpus, tmp_path):
    root, manifest = corpus
    key = tmp_path / "key"
    key.write_text("a key of sixteen bytes or more")
    settings = IngestSettings(source=(str(root), str(manifest)), key_file=str(key), **LIMITS)
    expected = [item for source in list_sources(settings) for item in read_source(source, settings)]
    rows = [item for item in expected if isinstance(item, dict)]
    config = IngestConfig(
        store=str(tmp_path / "store"),
        source=settings.source,
        key_file=str(key),
        max_error_rate=1.0,
        files_per_shard=40,
        progress=False,
        **LIMITS,
    )
    said = str(ingest(config))
    refused = len(expected) - len(rows)
    assert f"{len(expected)} rows in = {len(rows)} rows out + {refused} quarantined" in said
    store = Store(config.store)
    pool = store.open_pool().read(["image_id", "source"])
    assert sorted(pool["image_id"].to_pylist()) == sorted(row["image_id"] for row in rows)
    held = Table.open(store.quarantine("ingest"), "ingest").read(["message"])
    assert all(held["message"].to_pylist())
    assert verify_store(store.root).sound
