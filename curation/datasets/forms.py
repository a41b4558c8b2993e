"""The forms in which a coreset is written: which files there are, and what is in each.

A form cuts a split into pieces of so many images. A piece is made in memory and written at once, so
a file that is there is whole.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa

from echostill.platform.tables.table import encode_parquet

UNLABELLED = "unlabelled"
SAFE = " ()+,;=@!'&"  # and letters, digits, "_.-~": as they are in a folder's name
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff\xe0": ".jpg", b"RIFF": ".webp"}

Files = Iterator[tuple[str, bytes]]  # name in the folder, content


class SplitPiece(NamedTuple):
    """The images of one piece of a split.

    Attributes:
        split: Name of the split.
        number: Of this piece, from 0.
        pieces: Pieces of the split.
        table: What is known of each image.
        pictures: Their encoded pixels.
    """

    split: str
    number: int
    pieces: int
    table: pa.Table
    pictures: Sequence[bytes]

    def images(self) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield what is known of each image, and its pixels."""
        yield from zip(self.table.to_pylist(), self.pictures, strict=True)


@dataclass(frozen=True)
class Form:
    """A form of files.

    Attributes:
        name: As given to ``--as``.
        images_per_file: Images of a piece.
        files: Names and contents of a piece's files.
        loads: Python that loads it, for the card; ``DIR`` stands for the folder.
        summary: What it is, in words.
        file_per_image: Whether each image is a file of its own.
        files_in_table: Whether the table says which file an image is in.
    """

    name: str
    images_per_file: int
    files: Callable[[SplitPiece], Files]
    loads: str
    summary: str
    file_per_image: bool = False
    files_in_table: bool = False


def suffix(data: bytes) -> str:
    """Return the suffix of an encoded picture; the pool holds PNG, JPEG and WebP."""
    return _SUFFIXES.get(data[:4], ".jpg" if data[:2] == b"\xff\xd8" else ".png")


def folder_name(label: str) -> str:
    """Return a label as the name of a folder, distinct for distinct labels."""
    name = quote(label, safe=SAFE) if label.strip() else UNLABELLED
    return name if name.strip(".") else name.replace(".", "%2E")


def file_name(form: str, known: dict[str, Any], data: bytes) -> str:
    """Return where an image's own file lies: in the folder of its class, or in one for all."""
    file = f"{known['image_id']}{suffix(data)}"
    if form == "folder":
        return f"{known['split']}/{folder_name(known['class'])}/{file}"
    return f"images/{file}"


def _in_folders(piece: SplitPiece) -> Files:
    for known, data in piece.images():
        yield file_name("folder", known, data), data


def _beside_a_table(piece: SplitPiece) -> Files:
    for known, data in piece.images():
        yield file_name("csv", known, data), data


def _originals(piece: SplitPiece) -> Files:
    for known, data in piece.images():
        yield known["file_name"], data


def _tar(piece: SplitPiece) -> Files:
    """WebDataset: members of one image share their name up to the first dot."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for known, data in piece.images():
            about = json.dumps(known, ensure_ascii=False, sort_keys=True).encode()
            for ending, content in ((suffix(data), data), (".json", about)):
                member = tarfile.TarInfo(f"{known['image_id']}{ending}")
                member.size, member.mtime = len(content), 0  # the same bytes every time
                archive.addfile(member, io.BytesIO(content))
    yield f"{piece.split}-{piece.number:06d}.tar", sink.getvalue()


def _hugging_face(piece: SplitPiece) -> Files:
    """Parquet whose metadata tells Hugging Face datasets which column is an image."""
    images = [
        {"bytes": data, "path": f"{known['image_id']}{suffix(data)}"}
        for known, data in piece.images()
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = piece.table.add_column(0, "image", pa.array(images, kind))
    features = {
        field.name: {"dtype": str(field.type), "_type": "Value"} for field in piece.table.schema
    }
    described = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    name = f"data/{piece.split}-{piece.number:05d}-of-{piece.pieces:05d}.parquet"
    yield name, encode_parquet(table)


def _parquet(piece: SplitPiece) -> Files:
    table = piece.table.add_column(0, "image", pa.array(list(piece.pictures), pa.binary()))
    yield f"{piece.split}/part-{piece.number:05d}.parquet", encode_parquet(table)


_FOLDER = """from torchvision.datasets import ImageFolder

images = ImageFolder("DIR/train")
print(len(images), images.classes)
"""
_WEBDATASET = """import glob
import webdataset

shards = sorted(glob.glob("DIR/train-*.tar"))
for sample in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
    print(sample["__key__"], sample["png"].size, sample["json"]["organ"])
"""
_HF = """from datasets import load_dataset

images = load_dataset("DIR")["train"]
print(len(images), images[0]["image"].size, images[0]["organ"])
"""
_PARQUET = """import io
import polars
from PIL import Image

rows = polars.read_parquet("DIR/train/*.parquet")
print(len(rows), Image.open(io.BytesIO(rows["image"][0])).size)
"""
_CSV = """import pandas
from PIL import Image

rows = pandas.read_csv("DIR/metadata.csv", keep_default_na=False)
print(len(rows), Image.open("DIR/" + rows["file_name"][0]).size)
"""

ORIGINALS = Form(
    "originals",
    1,  # a cine may be large
    _originals,
    _CSV,
    "the original files, byte for byte, and one CSV file; images of one cine name the same file",
    files_in_table=True,
)
FORMS = {
    form.name: form
    for form in (
        Form(
            "folder",
            1000,
            _in_folders,
            _FOLDER,
            "a folder per split, in it a folder per class, in it an image file per image",
            file_per_image=True,
        ),
        Form(
            "webdataset",
            1000,
            _tar,
            _WEBDATASET,
            "tar files of 1,000 images, each image with a JSON file of what is known of it",
        ),
        Form("hf", 1000, _hugging_face, _HF, "Parquet files for Hugging Face datasets"),
        Form(
            "parquet",
            1000,
            _parquet,
            _PARQUET,
            "a folder of Parquet files per split, the encoded image in the column image",
        ),
        Form(
            "csv",
            1000,
            _beside_a_table,
            _CSV,
            "an image file per image, and one CSV file",
            file_per_image=True,
        ),
    )
}
