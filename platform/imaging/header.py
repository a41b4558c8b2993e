"""What a file says about itself beside its pixels: the words that readers and their users share."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Region:
    """An ultrasound region (PS3.3 C.8.5.5): what its rectangle shows; bounds are inclusive."""

    left: int
    top: int
    right: int
    bottom: int
    spatial_format: int  # 1 two-dimensional, 2 M-mode, 3 spectral, 4 wave form, 5 graphics
    data_type: int  # 1 tissue, 2 colour flow, 3 and 4 spectral Doppler, 5 and more traces and bars


@dataclass(frozen=True)
class DicomHeader:
    """What the pipeline uses of a DICOM header; a missing value is an empty string."""

    sop_instance_uid: str
    study_instance_uid: str
    patient_id: str = field(repr=False)
    organ: str  # BodyPartExamined in lower case
    device: str  # ManufacturerModelName
    frames: int  # as stated
    image_type: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    manufacturer: str = ""  # never stored: to tell scanners apart
    issuer: str = field(default="", repr=False)  # who gave the patient's id
    identifying: str = ""  # what of the picture identifies the patient, as the file itself says
