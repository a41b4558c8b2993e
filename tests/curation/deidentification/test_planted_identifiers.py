"""Planted identifiers through the real path: in no table, log, message or staged pixel."""

import io
import json
import logging
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from echostill.curation import IngestConfig, ingest, retry_ingest
from echostill.curation.deidentification import review
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.ingestion.identity import digest
from echostill.curation.ingestion.keys import reveal
from echostill.curation.ingestion.settings import KEY_VARIABLE
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.imaging.images import decode_staged
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.tables.verify import verify_store

CINE = Path(__file__).parents[3] / "examples/quickstart/pool/dicom/OBXXXX1A_rle_2frame.dcm"
KEY = "an altogether secret key"
# What a person or a place could be known by; none occurs in a path or in our own words.
PLANTED = (
    "quenneville", "zsofia", "mrn-77120934", "19430722", "accno5581", "saint-thekla",
    "wolkenstein", "oophorectomy-follow", "hiddenbyprivate", "1.2.999.4711", KEY,
)  # fmt: skip
PERSON = "Quenneville^Zsofia"


def header(dataset, number):
    dataset.PatientName = PERSON
    dataset.PatientID = "MRN-77120934"
    dataset.PatientBirthDate = "19430722"
    dataset.AccessionNumber = "ACCNO5581"
    dataset.InstitutionName = "Saint-Thekla"
    dataset.ReferringPhysicianName = "Wolkenstein^Ida"
    dataset.StudyDescription = "Oophorectomy-follow up, Quenneville"
    dataset.StudyID = "ACCNO5581"
    dataset.BodyPartExamined = "QUENNEVILLE"  # typed into the wrong field
    dataset.StudyInstanceUID = "1.2.999.4711.1"
    dataset.SOPInstanceUID = f"1.2.999.4711.1.{number}"
    dataset.ImageComments = "Zsofia"
    block = dataset.private_block(0x0099, "ECHO TEST", create=True)
    block.add_new(0x01, "LO", "HiddenByPrivate")
    sequence = Dataset()
    sequence.PatientID = "MRN-77120934"
    dataset.RequestAttributesSequence = [sequence]


def dicom(path, frames, number):
    """Write frames (N, H, W) as an uncompressed DICOM cine without declared regions."""
    dataset = pydicom.dcmread(CINE)
    for name in ("SequenceOfUltrasoundRegions", "PaletteColorLookupTableUID"):
        if name in dataset:
            del dataset[name]
    header(dataset, number)
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = frames.shape
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset["PixelData"] = pydicom.DataElement(0x7FE00010, "OB", frames.tobytes())
    dataset.save_as(path)


@pytest.fixture
def export(tmp_path, phantom):
    """A folder as a hospital exports it, and the box of the text in the borders."""
    root = tmp_path / "export"
    folder = root / "Quenneville_Zsofia"
    folder.mkdir(parents=True)
    text = "QUENNEVILLE"
    tissue = phantom.picture(phantom.fan())
    border, box = phantom.write(tissue, text, (2, 2))
    over, _ = phantom.write(tissue, text, (100, 120))
    Image.fromarray(border).save(folder / "MRN-77120934 border.png")
    Image.fromarray(over).save(folder / "MRN-77120934 over.png")
    colour = np.repeat(border[..., None], 3, axis=2)
    colour[..., 0] //= 2
    Image.fromarray(colour).save(folder / "MRN-77120934 colour.png")
    cine = [phantom.write(phantom.picture(phantom.fan(), s), text, (2, 2))[0] for s in range(6)]
    dicom(folder / "zsofia_cine.dcm", np.stack(cine), 1)
    cine[3], _ = phantom.write(cine[3], text, (100, 120))
    dicom(folder / "zsofia_late.dcm", np.stack(cine), 2)
    # Files that fail, so that their errors are asked as well.
    whole = (folder / "zsofia_cine.dcm").read_bytes()
    (folder / "zsofia_cut.dcm").write_bytes(whole[: len(whole) // 2])
    dataset = pydicom.dcmread(CINE)
    header(dataset, 3)
    del dataset.PixelData
    dataset.save_as(folder / "zsofia_empty.dcm")
    (folder / "Quenneville.png").write_bytes(b"Quenneville")
    shutil.copy(folder / "zsofia_cine.dcm", folder / "zsofia_again.dcm")
    told = b'{"patient": "MRN-77120934", "id": "ACCNO5581"}'
    picture = (folder / "MRN-77120934 border.png").read_bytes()
    with tarfile.open(folder / "Quenneville.tar", "w") as archive:
        for name, data in (("zsofia.png", picture), ("zsofia.json", told), ("mrn.png", b"Zsofia")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    listing = root / "Quenneville.csv"
    files = sorted(file.name for file in folder.iterdir())
    rows = [f"{folder.name}/{name},MRN-77120934" for name in [*files, files[0]]]
    listing.write_text("\n".join(["file,group", *rows, ",MRN-77120934"]) + "\n")
    return listing, box


def configured(listing, store, **values):
    deidentify = values.pop("deidentify", DeidentifySettings())
    return IngestConfig(
        store=str(store), source=str(listing), stage_side=512, max_error_rate=1.0,
        files_per_shard=5, progress=False, deidentify=deidentify, **values,
    )  # fmt: skip


def everything_in(folder):
    """Return the text of every file and of its name; Parquet decoded as well as raw."""
    texts = []
    for file in sorted(folder.rglob("*")):
        texts.append(file.relative_to(folder).as_posix())
        if file.is_file():
            texts.append(file.read_bytes().decode("latin-1"))
        if file.suffix == ".parquet":
            table = pq.read_table(file, partitioning=None)
            texts.append(str(table.schema.metadata))
            drop = [name for name in table.column_names if name == "image"]
            texts.append(str(table.drop_columns(drop).to_pylist()))
    return "\n".join(texts)


def told(text):
    folded = re.sub(r"[\s^_]+", " ", text.casefold())
    return [name for name in PLANTED if name in folded]


def ray_logs():
    import ray

    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    return "\n".join(
        file.read_text(errors="replace") for file in folder.rglob("*") if file.is_file()
    )


def test_nothing_planted_comes_out(
    ray_cluster, export, tmp_path, monkeypatch, capfd, caplog, phantom
):
    listing, box = export
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    caplog.set_level(logging.DEBUG)
    config = configured(listing, tmp_path / "store")
    with pytest.raises(EchostillError, match="above max_error_rate") as raised:
        ingest(config.model_copy(update={"max_error_rate": 0.01}))
    rotten = str(raised.value)
    said = str(ingest(config))
    assert "(3 finished earlier)" in said
    store = Store(str(tmp_path / "store"))
    rows = store.open_pool().read().to_pylist()
    held = Table.open(store.quarantine("ingest"), "ingest").read().to_pylist()
    waits = review.waiting(store.root)

    # All is accounted for: borders, cines of which a frame waits, a cut one's first frames;
    # the copy of the first cine repeats its ids, the rest fails.
    classes = [row["error_class"] for row in held]
    assert classes.count("NeedsReview") == len(waits) == 2
    assert {row["reason"] for row in waits} == {"text"}
    assert len(rows) >= 2 + 6 + 5
    assert (
        f"{len(rows) + len(held)} rows in = {len(rows)} rows out + {len(held)} quarantined" in said
    )
    assert len({row["image_id"] for row in rows}) == len(rows)
    assert {row["organ"] for row in rows} == {""}
    assert digest("id", "ACCNO5581") not in {row["image_id"] for row in rows}  # it can be guessed
    every = [row["source"] for row in [*rows, *held]]
    named = reveal(config, store.pool(), every).values()
    assert len(named) == len(set(every))
    assert "Quenneville_Zsofia/Quenneville.tar/zsofia.png" in named

    # In no byte of the store, and in nothing that was said or logged.
    assert told(everything_in(tmp_path / "store")) == []
    spoken = capfd.readouterr()
    described = review.describe(store.root, waits)
    assert told("\n".join([rotten, said, spoken.out, spoken.err, caplog.text, described])) == []
    assert told(ray_logs()) == []

    # In no staged pixel: where text was drawn into the border there is black, and tissue is left.
    for row in rows:
        pixels = decode_staged(row["image"])
        assert pixels.shape[:2] == (240, 320)
        assert not pixels[box[1] : box[3], box[0] : box[2]].any()
        assert pixels[phantom.fan()].mean() > 20
    assert not any(file.suffix == ".png" for file in (tmp_path / "store").rglob("*"))
    assert verify_store(store.root).sound

    # Errors of wrong use tell no name that the user did not type.
    with pytest.raises(UsageError) as raised:
        ingest(configured(listing, tmp_path / "other", group_pattern="nowhere"))
    assert told(str(raised.value)) == []

    # A pool is not continued under another key, and no short key is taken.
    for key, message in ((f"not {KEY}", "key check"), ("short", "openssl rand")):
        monkeypatch.setenv(KEY_VARIABLE, key)
        with pytest.raises(UsageError, match=message) as raised:
            ingest(config)
        assert told(str(raised.value)) == []


def test_without_a_key_patients_are_grouped_and_a_run_cut_short_goes_on(
    ray_cluster, export, tmp_path, monkeypatch
):
    listing, _ = export
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    folder = listing.parent / "Quenneville_Zsofia"
    ingest(configured(folder, tmp_path / "store"))
    pool = tmp_path / "store" / "pool"
    whole = {path.name: path.read_bytes() for path in pool.glob("*.parquet")}
    rows = Store(str(tmp_path / "store")).open_pool().read().to_pylist()
    groups = {row["group_id"] for row in rows if ".dcm" in row["source"]}
    assert len(groups) == 1  # three files of one patient
    assert told(str(groups)) == []
    assert told(str([row["image_id"] for row in rows])) == []
    records = tmp_path / "store" / "records" / "pool"
    (records / "manifest.json").unlink()
    (records / "done" / "00001.json").unlink()
    ingest(configured(folder, tmp_path / "store"))
    assert {path.name: path.read_bytes() for path in pool.glob("*.parquet")} == whole


def test_approved_frames_enter_as_they_were_cleaned(ray_cluster, export, tmp_path, monkeypatch):
    listing, _ = export
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    settings = DeidentifySettings(review_pixels=True, contact_sheet=3)
    config = configured(listing, tmp_path / "store", deidentify=settings)
    with pytest.raises(UsageError, match="run `echostill ingest`"):
        review.waiting(str(tmp_path / "store"))
    ingest(config)
    store = Store(str(tmp_path / "store"))
    before = store.open_pool().rows
    first, second = review.waiting(store.root)

    # Who has the key and the files finds the names behind the hashes.
    named = reveal(config, store.pool(), [first["source"], second["source"], "0" * 32])
    assert sorted(name.rpartition("/")[2] for name in named.values()) == [
        "MRN-77120934 over.png",
        "zsofia_late.dcm#3",
    ]

    # Pictures were asked for: they lie apart, under a name that warns.
    pictures = tmp_path / "store" / "review" / review.PICTURES
    names = {path.name for path in pictures.iterdir()}
    assert {f"{first['image_id']}.png", f"{second['image_id']}.png", "READ-ME.txt"} <= names
    sheets = list(pictures.glob("contact-sheet-*.png"))
    assert sheets
    assert Image.open(io.BytesIO(sheets[0].read_bytes())).size[0] > 320
    assert told("\n".join(names)) == []

    for wanted, reason, message in (
        ([first["image_id"]], " ", "needs a reason"),
        (["ffff"], "why not", "is not held back for review"),
        ([""], "why not", "is the beginning of 2 ids"),
    ):
        with pytest.raises(UsageError, match=message):
            review.decide(store.root, "approve", wanted, reason=reason)
    assert not (tmp_path / "store/review/approvals").exists()
    ids = tmp_path / "ids.txt"
    ids.write_text(f"{first['image_id'][:8]}\n")
    assert (
        review.decide(store.root, "approve", [str(ids)], reason="only a scale", by="R. Reader") == 1
    )
    shown = {row["image_id"]: row["decided_by"] for row in review.waiting(store.root)}
    assert shown == {first["image_id"]: "R. Reader", second["image_id"]: ""}
    said = str(ingest(config))
    assert "1 shard(s) read again for approved frames" in said
    assert store.open_pool().rows == before + 1
    assert first["image_id"] in store.open_pool().read(["image_id"])["image_id"].to_pylist()
    assert [row["image_id"] for row in review.waiting(store.root)] == [second["image_id"]]
    assert "already done" in str(ingest(config))
    review.decide(store.root, "approve", [second["image_id"]], reason="only a scale")
    retry_ingest(config)
    assert store.open_pool().rows == before + 2
    assert review.waiting(store.root) == []
    assert verify_store(store.root).sound

    # What was approved are those pixels: settings that show more of the frame ask again.
    rule = {"rows": 240, "columns": 320, "keep": ((0, 0, 320, 240),)}
    wider = DeidentifySettings(masks=(rule,))
    ingest(config.model_copy(update={"deidentify": wider}), overwrite=True)
    assert first["image_id"] in {row["image_id"] for row in review.waiting(store.root)}


def test_redacted_frames_enter_with_the_share_that_was_blackened(
    ray_cluster, export, tmp_path, monkeypatch, phantom
):
    listing, box = export
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    config = configured(
        listing, tmp_path / "store", deidentify=DeidentifySettings(text="redact"), organ="Liver"
    )
    said = str(ingest(config))
    assert "held back" not in said
    store = Store(str(tmp_path / "store"))
    table = store.open_pool().read()
    assert table.schema.names[-1] == "redacted"
    rows = table.to_pylist()
    assert sorted(row["redacted"] > 0 for row in rows)[-3:] == [False, True, True]
    # Nothing of the name is left over the tissue (100, 120), nor in the border.
    _, over = phantom.write(phantom.picture(phantom.fan()), "QUENNEVILLE", (100, 120))
    for row in rows:
        pixels = decode_staged(row["image"])
        for x0, y0, x1, y1 in (box, over) if row["redacted"] else (box,):
            assert not pixels[y0:y1, x0:x1].any()
        assert pixels[phantom.fan()].mean() > 20
    assert review.waiting(store.root) == []
    assert verify_store(store.root).sound


def test_frames_held_back_have_a_limit_and_are_told_by_their_context(
    ray_cluster, export, tmp_path, monkeypatch
):
    listing, _ = export
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    limited = DeidentifySettings(max_held_back_rate=0.01)
    values = {"organ": "Liver", "device": "ACME One"}
    with pytest.raises(EchostillError, match=r"held back \(NeedsReview\).*max_held_back_rate"):
        ingest(configured(listing, tmp_path / "store", deidentify=limited, **values))
    said = str(ingest(configured(listing, tmp_path / "store", **values)))
    assert "2 held back for text" in said
    assert "2 held back for `echostill review" in said
    waiting = review.waiting(str(tmp_path / "store"))
    assert {(row["organ"], row["device"]) for row in waiting} == {("Liver", "ACME One")}
    pool = Store(str(tmp_path / "store")).open_pool().read().to_pylist()
    groups = {row["group_id"] for row in pool}
    assert {row["group_id"] for row in waiting} <= groups  # hashed as in the pool
    assert told(json.dumps(waiting)) == []
