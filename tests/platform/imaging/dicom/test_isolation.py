import io
import os
import signal
import threading

import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.uid import JPEGLSLossless

from echostill.platform.imaging.dicom import isolation
from echostill.platform.imaging.dicom.isolation import DecoderError, IsolatedDecoder

VALUES = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
OPTIONS = {
    "rows": 40,
    "columns": 60,
    "samples_per_pixel": 1,
    "bits_allocated": 8,
    "bits_stored": 8,
    "pixel_representation": 0,
    "photometric_interpretation": "MONOCHROME2",
    "number_of_frames": 1,
    "pixel_keyword": "PixelData",
}


@pytest.fixture
def decoder():
    made = IsolatedDecoder()
    yield made
    made.close()


@pytest.fixture
def frame(dicom):
    dataset = pydicom.dcmread(io.BytesIO(dicom(VALUES[None])))
    dataset.compress(JPEGLSLossless)
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def decode(decoder, data):
    return decoder.decode(data, str(JPEGLSLossless), "gdcm", OPTIONS)


def test_a_frame_comes_back_as_it_was(decoder, frame):
    for _ in range(2):
        values, photometric = decode(decoder, frame)
        assert np.array_equal(values, VALUES)
        assert photometric == "MONOCHROME2"


def test_a_damaged_frame_is_an_error_and_the_next_is_read(decoder, frame):
    with pytest.raises(DecoderError, match="damaged"):
        decode(decoder, frame[:-200])
    assert np.array_equal(decode(decoder, frame)[0], VALUES)


def test_a_decoder_that_dies_costs_its_frame_alone(decoder, frame):
    decode(decoder, frame)
    process = decoder._process
    os.kill(process.pid, signal.SIGSTOP)  # so that it dies with the request in hand
    killer = threading.Timer(0.3, process.kill)
    killer.start()
    with pytest.raises(DecoderError, match="ended the decoder"):
        decode(decoder, frame)
    killer.join()
    assert np.array_equal(decode(decoder, frame)[0], VALUES)
    assert decoder._process.pid != process.pid


def test_a_decoder_that_hangs_is_ended(decoder, frame, monkeypatch):
    decode(decoder, frame)
    process = decoder._process
    monkeypatch.setattr(isolation, "SECONDS", 0.2)
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(DecoderError, match="took more than"):
        decode(decoder, frame)
    assert process.poll() is not None
    monkeypatch.setattr(isolation, "SECONDS", 60.0)
    assert np.array_equal(decode(decoder, frame)[0], VALUES)
