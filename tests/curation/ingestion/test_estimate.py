import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from echostill.curation.deidentification.settings import DeidentifySettings
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
def test_stills_are_estimated_from_a_sample(tmp_path, codec):
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


def test_files_that_give_nothing_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    found, _, _ = both(tmp_path)
    assert found.total_images == 0
    settings = IngestSettings(source=str(tmp_path), deidentify=DeidentifySettings(pixels="off"))
    [failure] = read_source(list_sources(settings)[0], settings)
    reason = failure.message
    assert reason.startswith("the file ")
    assert found.describe() == (
        "unknown, estimated from 1 file(s); no image from 1 of 1: 1 unreadable files or frames "
        f"(first: {reason})"
    )
    assert estimate([], IngestSettings()).describe() == "unknown, estimated from 0 file(s)"


def test_a_key_keeps_messages_out_of_the_estimate(tmp_path):
    (tmp_path / "good.png").write_bytes(png(0))
    (tmp_path / "z.png").write_bytes(b"no image")
    hashed = DeidentifySettings(sources="hashed", pixels="off")
    settings = IngestSettings(source=str(tmp_path), deidentify=hashed)
    found = estimate(list_sources(settings), settings)
    assert found.describe().endswith(
        "estimated from 2 file(s); no image from 1 of 2: 1 unreadable files or frames "
        "(first: DecodeError)"
    )


def test_files_that_are_held_back_are_told_from_missing_ones(tmp_path, phantom):
    lines = ["file", "gone_1.png", "gone_2.png"]
    for number in range(14):
        frame = phantom.picture(phantom.fan(), number)
        if number < 3:
            frame, _ = phantom.write(frame, "DOE, JANE", (110, 120))
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    settings = IngestSettings(source=str(tmp_path / "list.csv"))
    message = estimate(list_sources(settings), settings).describe()
    assert "no image from 5 of 16: 3 held back for text, 2 missing files (first: " in message
