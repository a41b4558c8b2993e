"""Ingests of small pictures, which can be killed at any write."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from echostill.curation import IngestConfig, ingest, retry_ingest
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/quickstart/pool/dicom"
DICOM = EXAMPLES / "OBXXXX1A_rle_2frame.dcm"
KEY = "a key of thirty-two characters, ok"


def picture(path, seed, side=24):
    """Write a picture of noise that depends on its seed alone; of some seeds, no picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if seed % 5 == 4:
        path.write_bytes(b"torn %d" % seed)
        return
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def instance(path, seed, uid, patient="anna"):
    """Write a DICOM file of an instance, with pixels of noise that depends on the seed."""
    dataset = pydicom.dcmread(DICOM)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPInstanceUID, dataset.PatientID = uid, patient
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 28), dtype=np.uint8)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.NumberOfFrames, dataset.SamplesPerPixel = 1, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].is_undefined_length = False
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)


class Ingests:
    """Ingests into stores of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self, sources, store="store", **settings):
        settings.setdefault("deidentify", DeidentifySettings(pixels="off", sources="names"))
        settings = {"files_per_shard": 3, "max_error_rate": 1.0, "progress": False, **settings}
        root = str(self.folder / store)
        sources = tuple(str(self.folder / source) for source in sources)
        return IngestConfig(store=root, source=sources, **settings)

    def run(self, *sources, store="store", **settings):
        return ingest(self.config(sources, store, **settings))

    def retry(self, *sources, store="store", **settings):
        return retry_ingest(self.config(sources, store, **settings))

    def store(self, name="store"):
        return Store(str(self.folder / name))

    def rows(self, name="store"):
        """Rows of the pool by id, and of its quarantine by source."""
        store = self.store(name)
        pool = sorted(store.open_pool().read().to_pylist(), key=lambda row: row["image_id"])
        parts = Table.open(store.quarantine("ingest"), "ingest").parts()
        held = [row for part in parts for row in part.to_pylist()]
        return pool, sorted(held, key=lambda row: (row["source"], row["message"]))

    def parts(self, name="store"):
        return {path.name: path.read_bytes() for path in (self.folder / name / "pool").iterdir()}

    def files(self, name="store"):
        """Every file of a store but logs, by its name."""
        root = self.folder / name
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and not {"events", "lease"} & set(path.relative_to(root).parts)
        }


class Killed(BaseException):
    """What a kill is in this process: nothing catches it by name."""


@contextmanager
def killed_at(moment):
    """Kill at the n-th write or deletion of a file of a store, before or after it is made."""
    left = [moment]
    write, delete = Storage.write, Storage.delete

    def step(call, *arguments):
        left[0] -= 1
        if left[0] == 0:
            if moment % 2:
                call(*arguments)
            raise Killed
        return call(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "write", lambda *given: step(write, *given))
        patch.setattr(Storage, "delete", lambda *given: step(delete, *given))
        yield left
