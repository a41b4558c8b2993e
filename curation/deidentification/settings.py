"""What de-identification is asked to do."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from echostill.platform.config import Config, execution


class MaskRule(Config):
    """What to keep of the frames of one scanner, if that is known in advance."""

    manufacturer: str = Field("", description="Manufacturer (0008,0070); empty matches all.")
    model: str = Field("", description="ManufacturerModelName (0008,1090); empty matches all.")
    rows: int = Field(description="Rows of the frame.", ge=1)
    columns: int = Field(description="Columns of the frame.", ge=1)
    keep: tuple[tuple[int, int, int, int], ...] = Field(
        description="Rectangles to keep: left, top, right, bottom (the last two exclusive).",
        min_length=1,
    )

    @model_validator(mode="after")
    def _inside(self) -> "MaskRule":
        for left, top, right, bottom in self.keep:
            if not (0 <= left < right <= self.columns and 0 <= top < bottom <= self.rows):
                box = [left, top, right, bottom]
                raise ValueError(
                    f"{box} is not a rectangle inside {self.columns} x {self.rows} pixels: "
                    "expected 0 <= left < right <= columns and 0 <= top < bottom <= rows"
                )
        return self


class DeidentifySettings(Config):
    """How identifiers are removed from pixels and names."""

    pixels: Literal["sector", "off"] = Field(
        "sector",
        description="Keep the ultrasound sector and hold back frames with text in it; off leaves "
        "pixels unchanged.",
    )
    sources: Literal["auto", "hashed", "names"] = Field(
        "auto",
        description="File names and groups as given, or as keyed hashes; auto hashes them if "
        "there is a key.",
    )
    min_confidence: float = Field(
        0.5, description="Hold back frames whose sector has a lower confidence.", ge=0, le=1
    )
    max_text: float = Field(
        0.93,
        description="Hold back (or redact) frames with a higher text score in the sector.",
        ge=0,
        le=1,
    )
    text: Literal["hold", "redact"] = Field(
        "hold",
        description="What becomes of frames with text in the sector: held back, or the text is "
        "blackened and looked for again.",
    )
    max_redacted: float = Field(
        0.1,
        description="Hold back frames that redaction takes more of the sector from.",
        ge=0,
        le=1,
    )
    finder: Literal["own", "both"] = Field(
        "own",
        description="What looks for text: the finder of echostill, or also that of RapidOCR (extra "
        "`ocr`).",
    )
    declared: Literal["hold", "ignore"] = Field(
        "hold",
        description="What becomes of DICOM files that say themselves that text is burned in, or "
        "that features identify the patient.",
    )
    frames_ahead: int = Field(
        32, description="Frames of a cine that are used to find its sector.", ge=1
    )
    masks: tuple[MaskRule, ...] = Field(
        (), description="What to keep for known scanners; the first match is used."
    )
    max_held_back_rate: float | None = execution(
        None,
        "Largest share of frames held back, above which ingest ends with an error; by default it "
        "warns above 0.2.",
        ge=0,
        le=1,
    )
    review_pixels: bool = execution(
        False, "Write the frames that are held back as pictures. They are identifiable."
    )
    contact_sheet: int = execution(
        0, "Frames to show before and after cleaning. The pictures are identifiable.", ge=0
    )

    @field_validator("pixels", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a bare off as false

    @property
    def redacts(self) -> bool:
        """Whether text in the sector is blackened."""
        return self.pixels != "off" and self.text == "redact"
