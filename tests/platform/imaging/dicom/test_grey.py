import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.dicom.grey import window_fraction
from echostill.platform.imaging.files import SourceFile

RANDOM = np.random.default_rng(0)


def pixels_of(data):
    clip = open_dicom(SourceFile("file", data=data))
    frames = list(clip.decode(range(clip.frames)))
    assert not [frame.error for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def test_window_is_applied_to_sixteen_bits(dicom):
    values = np.array([[[0, 100, 200, 300, 4000]]], dtype=np.uint16)
    data = dicom(values, WindowCenter=200, WindowWidth=201, RescaleSlope=1, RescaleIntercept=0)
    expected = np.clip((values - 199.5) / 200 + 0.5, 0, 1) * 255
    assert np.array_equal(pixels_of(data), np.rint(expected))


def test_rescale_comes_before_the_window(dicom):
    values = np.array([[[0, 50, 100, 150]]], dtype=np.uint16)
    rescaled = dicom(
        values, WindowCenter=100, WindowWidth=201, RescaleSlope=2, RescaleIntercept=-10
    )
    expected = np.clip((values * 2.0 - 10 - 99.5) / 200 + 0.5, 0, 1) * 255
    assert np.array_equal(pixels_of(rescaled), np.rint(expected))


def test_sixteen_bits_without_a_window_use_their_own_range(dicom):
    values = np.array([[[1000, 1500, 3000]]], dtype=np.uint16)
    assert pixels_of(dicom(values)).tolist() == [[[0, 64, 255]]]


@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_rise_from_zero_to_one_around_the_centre(kind):
    shown = window_fraction(np.linspace(-5000, 5000, 1001), 40.0, 400.0, kind)
    assert (np.diff(shown) >= 0).all()
    assert shown[0] < 1e-6
    assert shown[-1] > 1 - 1e-6
    assert abs(float(window_fraction(np.array([40.0]), 40.0, 400.0, kind)[0]) - 0.5) < 0.01


def test_window_of_width_one_is_a_step():
    assert window_fraction(np.array([9.0, 9.5, 10.0]), 10.0, 1.0, "LINEAR").tolist() == [0, 0, 1]


def test_signed_sixteen_bits_go_through_the_window_and_are_inverted(dicom):
    values = np.array([[[-1000, -50, 0, 50, 1000]]], dtype=np.int16)
    shown = pixels_of(dicom(values, WindowCenter=0, WindowWidth=101))
    expected = np.rint(np.clip((values + 0.5) / 100 + 0.5, 0, 1) * 255)
    assert np.array_equal(shown, expected)
    inverted = pixels_of(dicom(values, "MONOCHROME1", WindowCenter=0, WindowWidth=101))
    assert np.array_equal(inverted, 255 - expected)


# --- where the rules stand -----------------------------------------------------------------------

TWELVE = RANDOM.integers(0, 4096, (3, 12, 16)).astype(np.uint16)
DEEP = {"BitsStored": 12, "HighBit": 11}


def item(**elements):
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def group(window=None, rescale=None):
    """A functional group with a window (centre, width) and a rescale (slope, intercept)."""
    made = Dataset()
    if window is not None:
        voi = item(WindowCenter=window[0], WindowWidth=window[1])
        made.FrameVOILUTSequence = [voi]
    if rescale is not None:
        values = item(RescaleSlope=rescale[0], RescaleIntercept=rescale[1], RescaleType="US")
        made.PixelValueTransformationSequence = [values]
    return made


def windowed(values, centre, width, slope=1.0, intercept=0.0):
    rescaled = values.astype(np.float64) * slope + intercept
    return np.rint(np.clip((rescaled - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_shared_groups_are_as_good_as_the_root(dicom, syntax):
    root = {"WindowCenter": 900, "WindowWidth": 1500, "RescaleSlope": 2, "RescaleIntercept": -300}
    shared = [group((900, 1500), (2, -300))]
    expected = windowed(TWELVE, 900, 1500, 2, -300)
    assert np.array_equal(pixels_of(dicom(TWELVE, syntax=syntax, **root, **DEEP)), expected)
    data = dicom(TWELVE, syntax=syntax, SharedFunctionalGroupsSequence=shared, **DEEP)
    assert np.array_equal(pixels_of(data), expected)


def test_each_frame_has_its_own_rules(dicom):
    windows = [(500, 700), (1500, 900), (2500, 4000)]
    slopes = [(1, 0), (2, -50), (0.5, 10)]
    frames = [group(*rules) for rules in zip(windows, slopes, strict=True)]
    shown = pixels_of(dicom(TWELVE, PerFrameFunctionalGroupsSequence=frames, **DEEP))
    for index, (window, slope) in enumerate(zip(windows, slopes, strict=True)):
        assert np.array_equal(shown[index], windowed(TWELVE[index], *window, *slope))


def test_a_frames_own_rule_comes_before_the_shared_and_that_before_the_root(dicom):
    per_frame = [group((500, 700)), group(), group(rescale=(2, 0))]
    data = dicom(
        TWELVE,
        PerFrameFunctionalGroupsSequence=per_frame,
        SharedFunctionalGroupsSequence=[group((1500, 900))],
        WindowCenter=9000,
        WindowWidth=1,
        RescaleSlope=3,
        RescaleIntercept=5,
        **DEEP,
    )
    shown = pixels_of(data)
    assert np.array_equal(shown[0], windowed(TWELVE[0], 500, 700, 3, 5))
    assert np.array_equal(shown[1], windowed(TWELVE[1], 1500, 900, 3, 5))
    assert np.array_equal(shown[2], windowed(TWELVE[2], 1500, 900, 2, 0))


def test_half_a_rescale_and_a_list_of_windows(dicom):
    shown = pixels_of(
        dicom(TWELVE, RescaleSlope=2, WindowCenter=[900, 10], WindowWidth=[1500, 5], **DEEP)
    )
    assert np.array_equal(shown, windowed(TWELVE, 900, 1500, 2))
    for elements in ({"WindowCenter": 900}, {"WindowCenter": 9, "WindowWidth": 0}):
        expected = [
            np.rint((v - float(v.min())) * (255 / float(v.max() - v.min()))) for v in TWELVE
        ]
        assert np.array_equal(pixels_of(dicom(TWELVE, **elements, **DEEP)), expected)


# --- tables --------------------------------------------------------------------------------------


def table(entries, first=0, bits=16, packed=False):
    """A lookup table; ``packed`` puts two entries of eight bits into a word."""
    kind = "<u1" if packed else "<u2"
    made = item(LUTDescriptor=[len(entries) % 2**16, first, bits])
    data = np.asarray(entries, kind).tobytes()
    made.add_new("LUTData", "OW", data + b"\0" * (len(data) % 2))
    return made


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_table_of_the_modality_comes_before_the_window(dicom, bits):
    entries = RANDOM.integers(0, 2**bits, 4000)
    data = dicom(
        TWELVE,
        ModalityLUTSequence=[table(entries, first=50, bits=bits)],
        WindowCenter=2 ** (bits - 1),
        WindowWidth=2**bits,
        **DEEP,
    )
    looked_up = entries[np.clip(TWELVE.astype(int) - 50, 0, 3999)]
    assert np.array_equal(pixels_of(data), windowed(looked_up, 2 ** (bits - 1), 2**bits))


@pytest.mark.parametrize("packed", [False, True])
def test_a_table_of_interest_takes_the_place_of_the_window(dicom, packed):
    entries = np.sort(RANDOM.integers(0, 256, 4096))
    elements = {"VOILUTSequence": [table(entries, bits=8, packed=packed)], "WindowCenter": 1,
                "WindowWidth": 2, **DEEP}  # fmt: skip
    assert np.array_equal(pixels_of(dicom(TWELVE, **elements)), entries[TWELVE])


def test_a_table_changes_eight_bits_too(dicom):
    values = RANDOM.integers(0, 256, (1, 12, 16), dtype=np.uint8)
    entries = np.arange(255, -1, -1)
    shown = pixels_of(dicom(values, VOILUTSequence=[table(entries, bits=8)]))
    assert np.array_equal(shown, 255 - values)


def test_a_table_that_states_fewer_bits_than_its_entries_have(dicom):
    entries = np.arange(4096)
    shown = pixels_of(dicom(TWELVE, VOILUTSequence=[table(entries, bits=8)], **DEEP))
    assert np.array_equal(shown, np.rint(TWELVE * (255 / 4095)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_presentation_table_comes_last(dicom, photometric):
    values = RANDOM.integers(0, 256, (1, 12, 16), dtype=np.uint8)
    entries = np.rint(65535 * (np.arange(256) / 255) ** 2).astype(int)
    shown = pixels_of(dicom(values, photometric, PresentationLUTSequence=[table(entries)]))
    turned = 255 - values if photometric == "MONOCHROME1" else values
    assert np.array_equal(shown, np.rint(entries[turned] / 257))


# --- polarity ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # said twice, turned once
    ],
)
def test_polarity(dicom, photometric, shape, inverted):
    values = RANDOM.integers(0, 256, (1, 12, 16), dtype=np.uint8)
    elements = {} if shape is None else {"PresentationLUTShape": shape}
    shown = pixels_of(dicom(values, photometric, **elements))
    assert np.array_equal(shown, 255 - values if inverted else values)
    deep = pixels_of(
        dicom(TWELVE, photometric, WindowCenter=2048, WindowWidth=4096, **elements, **DEEP)
    )
    expected = windowed(TWELVE, 2048, 4096)
    assert np.array_equal(deep, 255 - expected if inverted else expected)


# --- outliers and blanks -------------------------------------------------------------------------

SPECKLE = (RANDOM.rayleigh(300, (1, 60, 80)) + 100).astype(np.uint16)


def own_range(values):
    low, high = float(values.min()), float(values.max())
    return np.rint((values - low) * (255 / (high - low)))


@pytest.mark.parametrize("value", [0, 65535])
def test_a_few_outliers_do_not_set_the_range(dicom, value):
    spoilt = SPECKLE + np.uint16(20_000)
    clean = pixels_of(dicom(spoilt))
    assert np.array_equal(clean, own_range(spoilt.astype(float)))
    spoilt[0, 5, 5:9] = value
    shown = pixels_of(dicom(spoilt))
    assert np.abs(shown.astype(int) - clean)[spoilt != value].max() <= 255 * 0.25
    assert np.corrcoef(shown[spoilt != value], clean[spoilt != value])[0, 1] > 0.99
    assert set(shown[spoilt == value]) == {0 if value == 0 else 255}


def test_padding_does_not_set_the_range_and_is_black(dicom):
    padded = SPECKLE.astype(np.int16)
    picture = np.ones(padded.shape, bool)
    padded[0, :20] = -32768
    picture[0, :20] = False
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        shown = pixels_of(dicom(padded, photometric, PixelPaddingValue=-32768))
        expected = own_range(padded[picture].astype(float))
        expected = 255 - expected if photometric == "MONOCHROME1" else expected
        assert np.array_equal(shown[picture], expected)
        assert not shown[~picture].any()


def test_a_window_beside_the_values_is_an_error_and_not_a_black_row(dicom):
    clip = open_dicom(SourceFile("f", data=dicom(SPECKLE, WindowCenter=40_000, WindowWidth=400)))
    (frame,) = clip.decode([0])
    assert frame.pixels is None
    assert "blank in its window (centre 40000, width 400), though its values are not" in str(
        frame.error
    )
    entries = np.zeros(10, int)
    clip = open_dicom(SourceFile("f", data=dicom(SPECKLE, VOILUTSequence=[table(entries)])))
    (frame,) = clip.decode([0])
    assert "blank in its table" in str(frame.error)


def test_a_table_or_a_slope_of_nothing_makes_no_black_row(dicom):
    values = RANDOM.integers(0, 256, (1, 60, 80), dtype=np.uint8)
    data = dicom(values, PresentationLUTSequence=[table(np.full(256, 65535))])
    (frame,) = open_dicom(SourceFile("f", data=data)).decode([0])
    assert "blank in what its header says of its grey values" in str(frame.error)
    plain = {"RescaleIntercept": 0, "WindowCenter": 500, "WindowWidth": 900}
    shown = pixels_of(dicom(SPECKLE, RescaleSlope=0, **plain))
    assert np.array_equal(shown, pixels_of(dicom(SPECKLE, RescaleSlope=1, **plain)))


def test_what_is_blank_in_the_file_is_a_picture(dicom):
    """A frame before the probe touches the skin: nothing but noise at the bottom of the range."""
    nothing = RANDOM.integers(0, 4, (1, 60, 80)).astype(np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, **DEEP}
    assert int(pixels_of(dicom(nothing, **window)).max()) <= 1
    window["WindowCenter"] = 3000
    window["WindowWidth"] = 500
    assert not pixels_of(dicom(nothing, **window)).any()
    assert not pixels_of(dicom(np.full((1, 9, 9), 77, np.uint16))).any()
