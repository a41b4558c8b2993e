"""Objects that are no picture of ultrasound, refused by name."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import UID_dictionary

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError, NoImageError

VALUES = np.random.default_rng(0).integers(0, 256, (1, 60, 80), dtype=np.uint8)
STORED = "1.2.840.10008.5.1.4.1.1."
CAPTURE = STORED + "7"


def opened(data):
    return open_dicom(SourceFile("f", data=data))


@pytest.mark.parametrize(
    ("end", "modality", "said"),
    [
        ("1", "CR", r"modality is CR \(computed radiography\)"),
        ("2", "CT", r"modality is CT \(computed tomography\)"),
        ("4", "MR", r"modality is MR \(magnetic resonance\)"),
        ("66.4", "SEG", r"modality is SEG \(a segmentation\)"),
        ("7", "XC", r"modality is XC \(photography\)"),
        ("7.4", "CT ", "modality is CT"),
        ("12.1", "XA", "X-Ray Angiographic Image"),
        ("2", None, "SOP class is 'CT Image'"),
        ("2", "OT", "SOP class is 'CT Image'"),
        ("77.1.1", "ES", "endoscopy"),
    ],
)
def test_other_modalities_are_refused_by_name(dicom, end, modality, said):
    elements = {"SOPClassUID": STORED + end}
    if modality is not None:
        elements["Modality"] = modality
    with pytest.raises(NoImageError, match=said) as caught:
        opened(dicom(VALUES, **elements))
    assert caught.value.kind.endswith("(DICOM)")
    assert "1.2.840" not in str(caught.value)


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        *((STORED + end, "US") for end in ("3", "3.1", "6", "6.1", "7", "7.2", "7.4")),
        *((STORED + "6.1", other) for other in ("CT", "OT", "")),
        *((CAPTURE, other) for other in ("US", "IVUS", "OT", "", "NEW")),
        *((STORED + "77.1.4", "US"), ("1.2.840.113619.4.26", "US"), ("", "US"), ("", "")),
        (STORED + "99999.1", "US"),
    ],
)
def test_ultrasound_is_read_whatever_it_is_stored_as(dicom, sop_class, modality):
    elements = {"Modality": modality, "SOPClassUID": sop_class or None}
    assert opened(dicom(VALUES, **elements)).frames == 1


OBJECTS = {
    name: uid
    for uid, (name, kind, *_) in UID_dictionary.items()
    if kind == "SOP Class"
    and uid.startswith(STORED)
    and "Image" not in name
    and "Volume" not in name
}


@pytest.mark.parametrize(
    "name",
    [
        *("Comprehensive SR Storage", "Encapsulated PDF Storage", "Raw Data Storage"),
        *("Grayscale Softcopy Presentation State Storage", "Segmentation Storage"),
        *("Key Object Selection Document Storage", "RT Structure Set Storage"),
        *("12-lead ECG Waveform Storage", "Encapsulated STL Storage"),
    ],
)
def test_objects_without_a_picture_are_expected(dicom, name):
    for modality in ("US", "SR", ""):
        with pytest.raises(NoImageError, match=f"'{name.removesuffix(' Storage')}'") as caught:
            opened(dicom(SOPClassUID=OBJECTS[name], Modality=modality))
        assert caught.value.kind == f"{name.removesuffix(' Storage')} (DICOM)"


def test_every_object_of_the_standard_without_a_picture_is_named(dicom):
    for uid in list(OBJECTS.values())[::7]:
        with pytest.raises(NoImageError):
            opened(dicom(SOPClassUID=uid))


def test_a_picture_whose_pixels_are_missing_is_damaged(dicom):
    for sop_class in (STORED + "6.1", CAPTURE):
        with pytest.raises(DecodeError, match="holds no pixel data") as caught:
            opened(dicom(SOPClassUID=sop_class, Modality="US"))
        assert not isinstance(caught.value, NoImageError)


def test_a_dicomdir_is_no_picture(dicom):
    index = pydicom.uid.MediaStorageDirectoryStorage
    with pytest.raises(NoImageError, match="Media Storage Directory"):
        opened(dicom(SOPClassUID=index))
