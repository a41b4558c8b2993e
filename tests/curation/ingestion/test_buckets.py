"""Sources in a bucket, on a real S3 server on loopback: the rows are those of the local folder."""

import io
import json
import shutil
import tarfile

import boto3
import numpy as np
import pytest
from PIL import Image

from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import KEY_VARIABLE, IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.errors import UsageError

ODD = "sub folder/é #%+&'.png"


@pytest.fixture
def bucket(object_store, tmp_path, monkeypatch, sample):
    """A folder and the same in a bucket; the client of the bucket."""
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    root = tmp_path / "pool"
    for seed, name in enumerate(("a.png", ODD, "b.png", "1.2.840.7")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name, "PNG")
    shutil.copy(sample / "dicom/OBXXXX1A_rle_2frame.dcm", root / "IM0001")
    with tarfile.open(root / "shard.tar", "w") as archive:
        archive.add(root / "a.png", "0.png")
    (root / "notes.txt").write_text("no image")
    client = boto3.client("s3", endpoint_url=object_store["AWS_ENDPOINT_URL"])
    for path in root.rglob("*"):
        if path.is_file():
            key = f"export/{path.relative_to(root).as_posix()}"
            client.put_object(Bucket="hospital", Key=key, Body=path.read_bytes())
    return root, client


def read_all(*source, **values):
    plain = DeidentifySettings(pixels="off")
    settings = IngestSettings(source=tuple(map(str, source)), deidentify=plain, **values)
    return [item for found in list_sources(settings) for item in read_source(found, settings)]


def test_a_bucket_gives_the_rows_of_the_folder(bucket):
    root, _ = bucket
    local, remote = read_all(root), read_all("s3://hospital/export")
    assert len(local) == 7
    assert remote == local
    assert read_all("s3://hospital/export/?region=us-east-1") == local
    assert read_all(f"s3://hospital/export/{ODD}")[0]["width"] == 30


def test_a_manifest_in_a_bucket(bucket):
    root, client = bucket
    lines = [{"file": name} for name in ("a.png", ODD, "gone.png", "../secret.png", "/etc/x.png")]
    body = "\n".join(map(json.dumps, lines)).encode()
    client.put_object(Bucket="hospital", Key="export/list.jsonl", Body=body)
    client.put_object(Bucket="hospital", Key="secret.png", Body=(root / "a.png").read_bytes())
    first, second, *refused = read_all("s3://hospital/export/list.jsonl")
    assert [first["source"], second["source"]] == ["a.png", ODD]
    assert first["image_id"] == read_all(root / "a.png")[0]["image_id"]
    assert all(isinstance(item, Failure) for item in refused)
    gone, climbing, absolute = (item.message for item in refused)
    assert gone == "the file does not exist"
    assert "outside of its folder" in climbing
    assert "outside of its folder" in absolute


def test_what_is_not_there_is_said(bucket):
    for missing in ("s3://hospital/nothing", "s3://hospital/export/gone.csv"):
        with pytest.raises(UsageError, match=r"source '.*' does not exist|cannot access source"):
            list_sources(IngestSettings(source=missing))
    with pytest.raises(UsageError, match="there is no bucket 'nowhere'"):
        list_sources(IngestSettings(source="s3://nowhere/x"))


def test_large_archives_are_streamed(bucket):
    _, client = bucket
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in ("0.png", "1.png"):
            pixels = np.random.default_rng(7).integers(0, 256, (700, 900), dtype=np.uint8)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(png.getvalue())
            archive.addfile(info, io.BytesIO(png.getvalue()))
    client.put_object(Bucket="hospital", Key="export/big.tar", Body=sink.getvalue())
    rows = read_all("s3://hospital/export/big.tar")
    assert [row["source"] for row in rows] == ["big.tar/0.png", "big.tar/1.png"]
