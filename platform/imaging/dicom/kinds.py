"""What a DICOM object is: a picture of ultrasound, one of another modality, or no picture at all.

A hospital's export has reports, presentation states and other modalities in the folders of an
examination. They are refused by name, and are no errors.
"""

import re

import pydicom
from pydicom.uid import UID

from echostill.platform.imaging.dicom.pixels import whole_number
from echostill.platform.imaging.images import NoImageError

_STANDARD = "1.2.840.10008."  # every UID of the standard begins so
_STORED = "1.2.840.10008.5.1.4.1.1."  # SOP classes that are stored as objects
_LEAST_PICTURE = 32  # pixels of a side, below which a maker's own object holds a preview
_MAKERS_OWN = "objects of a maker's own kind (DICOM)"
# SOP classes: of ultrasound, and those of every modality, where Modality says which (PS3.3 A).
_ULTRASOUND = tuple(f"{_STORED}{end}" for end in ("3", "3.1", "6", "6.1", "6.2"))
_ANY = tuple(f"{_STORED}{end}" for end in ("7", "7.1", "7.2", "7.3", "7.4"))
_ULTRASOUND_MODALITIES = ("US", "IVUS", "BDUS")
# Of PS3.3 C.7.3.1.1.1; those left out here (OT, DOC, ...) say nothing about a picture.
_OTHER_MODALITIES = {
    "AR": "autorefraction",
    "ASMT": "content assessment",
    "BI": "biomagnetic imaging",
    "BMD": "bone densitometry",
    "CFM": "confocal microscopy",
    "CR": "computed radiography",
    "CT": "computed tomography",
    "CTPROTOCOL": "a CT protocol",
    "DG": "diaphanography",
    "DMS": "dermoscopy",
    "DX": "digital radiography",
    "ECG": "electrocardiography",
    "ES": "endoscopy",
    "GM": "general microscopy",
    "HD": "haemodynamic waveforms",
    "IO": "intra-oral radiography",
    "IVOCT": "intravascular optical coherence tomography",
    "KO": "a key object selection",
    "LS": "laser surface scan",
    "M3D": "a model for 3D manufacturing",
    "MG": "mammography",
    "MR": "magnetic resonance",
    "NM": "nuclear medicine",
    "OAM": "ophthalmic axial measurements",
    "OCT": "optical coherence tomography",
    "OP": "ophthalmic photography",
    "OPT": "ophthalmic tomography",
    "OPTBSV": "ophthalmic tomography",
    "OPTENF": "ophthalmic tomography",
    "OPV": "visual field",
    "OSS": "optical surface scan",
    "PA": "photoacoustic imaging",
    "PLAN": "a plan",
    "PR": "a presentation state",
    "PT": "positron emission tomography",
    "PX": "panoramic radiography",
    "REG": "a registration",
    "RF": "radiofluoroscopy",
    "RG": "radiography",
    "RTDOSE": "radiotherapy",
    "RTIMAGE": "radiotherapy",
    "RTPLAN": "radiotherapy",
    "RTRECORD": "radiotherapy",
    "RTSTRUCT": "radiotherapy",
    "SEG": "a segmentation",
    "SM": "slide microscopy",
    "SMR": "stereometric relationship",
    "SR": "a structured report",
    "TG": "thermography",
    "XA": "X-ray angiography",
    "XC": "photography",
}


def refuse_other_kinds(dataset: pydicom.Dataset, has_pixels: bool) -> None:
    """Refuse an object that is no picture of ultrasound, saying what it is.

    An ultrasound SOP class counts first, then Modality, then the SOP class. An object of a maker's
    own kind is refused where its picture is only a preview of other data.

    Raises:
        NoImageError: It is of another kind.
    """
    stated = str(dataset.get("SOPClassUID") or "").strip()
    modality = re.sub(r"\W", "", str(dataset.get("Modality") or "")).upper()
    if stated in _ULTRASOUND:
        return
    if stated and not stated.startswith(_STANDARD):
        _refuse_other_modality(modality, "")
        _refuse_preview(dataset, stated, has_pixels)
        return
    name = _name_of(stated)
    is_picture = has_pixels or not name or "Image" in name
    if not is_picture:
        raise NoImageError(f"is no picture but DICOM's '{name}'", f"{name} (DICOM)")
    if modality in _ULTRASOUND_MODALITIES and "Segmentation" not in name:
        return
    _refuse_other_modality(modality, name)
    if name and stated not in _ANY:
        raise NoImageError(
            f"is no picture of ultrasound: its SOP class is '{name}'", f"{name} (DICOM)"
        )


def _name_of(stated: str) -> str:
    """Return what a SOP class of the standard is called, ``\"\"`` where it has no name."""
    name = UID(stated).name if stated else ""
    return "" if name == stated else re.sub(r" Storage( SOP Class)?$", "", name)


def _refuse_other_modality(modality: str, name: str) -> None:
    if modality in _OTHER_MODALITIES:
        what = f"{modality} ({_OTHER_MODALITIES[modality]})"
        and_class = f", SOP class '{name}'" if name else ""
        raise NoImageError(
            f"is no picture of ultrasound: its modality is {what}{and_class}", f"{modality} (DICOM)"
        )


def _refuse_preview(dataset: pydicom.Dataset, stated: str, has_pixels: bool) -> None:
    own = f"is of a kind of its maker's own (SOP class {stated}), whose data is not read"
    rows, columns = whole_number(dataset, "Rows") or 0, whole_number(dataset, "Columns") or 0
    if not has_pixels:
        raise NoImageError(f"{own}: it holds no pixel data", _MAKERS_OWN)
    if max(rows, columns) < _LEAST_PICTURE:
        raise NoImageError(f"{own}: its pixels of {columns} x {rows} are a preview", _MAKERS_OWN)
