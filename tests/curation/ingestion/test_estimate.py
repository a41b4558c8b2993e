import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from echostill.curation.deidentification.frames import DeidentifySettings
from echostill.curation.ingestion.estimate import estimate
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source


def png(seed):
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def both(folder, **values):
    """The estimate, and what reading everything gives."""
    plain = DeidentifySettings(pixels="off")
    settings = IngestSettings(source=str(folder), deidentify=plain, **values)
    sources = list_sources(settings)
    items = [item for source in sources for item in read_source(source, settings)]
    rows = [item for item in items if not isinstance(item, Failure)]
    return estimate(sources, settings), rows, sum(len(row["image"]) for row in rows)


@pytest.mark.parametrize("codec", ["png", "jpeg", "webp"])
def test_stills_are_reckoned_from_a_sample(tmp_path, codec):
    for seed in range(50):
        (tmp_path / f"{seed:02d}.png").write_bytes(png(seed))
    found, rows, size = both(tmp_path, stage_codec=codec)
    assert (found.sampled, found.total_images) == (16, len(rows))
    assert found.total_bytes == pytest.approx(size, rel=0.1)
    assert codec in found.describe()


def test_frames_are_counted_as_they_are_sampled(tmp_path, dicom):
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (60, 30, 30), dtype=np.uint8)
        data = dicom(values, SOPInstanceUID=f"1.2.{number}")
        (tmp_path / f"{number}.dcm").write_bytes(data)
    for frames in ({}, {"every": 7}, {"per_clip": 5}):
        found, rows, size = both(tmp_path, frames=frames)
        assert found.total_images == len(rows)
        assert found.total_bytes == pytest.approx(size, rel=0.1)


def test_an_archives_size_says_how_many_images_it_holds(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for seed in range(100):
            info = tarfile.TarInfo(f"{seed}.png")
            info.size = len(png(seed))
            archive.addfile(info, io.BytesIO(png(seed)))
    found, rows, _ = both(tmp_path)
    assert found.total_images == pytest.approx(len(rows), rel=0.25)


def test_files_that_give_nothing_are_said(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    found, _, _ = both(tmp_path)
    assert found.total_images == 0
    assert found.describe() == "unknown, reckoned from 1 files, of which 1 gave nothing"
    assert estimate([], IngestSettings()).describe() == "unknown, reckoned from 0 files"
