import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from echostill.curation.deidentification import frames as deidentification
from echostill.curation.deidentification.frames import Origin, deidentify
from echostill.curation.deidentification.settings import DeidentifySettings, MaskRule
from echostill.curation.deidentification.text.found import Text
from echostill.curation.deidentification.verdict import Context, Verdict, split_context
from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.header import Region

pytestmark = pytest.mark.slow

DICOM = Path(__file__).parents[3] / "examples/quickstart/pool/dicom"
DEFAULT = DeidentifySettings()


REDACT = DeidentifySettings(text="redact")


def run(frames, regions=(), settings=DEFAULT, **origin):
    return list(deidentify(frames, settings, Origin(regions=regions, **origin)))


def ink(pixels, box):
    return int(pixels[box[1] : box[3], box[0] : box[2]].max())


def test_text_beside_the_sector_is_black_and_tissue_is_kept(phantom):
    mask = phantom.fan()
    frame, box = phantom.write(phantom.picture(mask), "DOE, JANE", (4, 4))
    assert ink(frame, box) > 200
    (cleaned,) = run([frame])
    assert cleaned.verdict.clean
    assert ink(cleaned.pixels, box) == 0
    assert (cleaned.pixels[mask] == frame[mask]).mean() > 0.97


def test_text_over_tissue_holds_the_frame_back(phantom):
    frame, box = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    (cleaned,) = run([frame])
    assert cleaned.verdict.reason == "text"
    assert cleaned.verdict.score > DEFAULT.max_text
    left, top, right, bottom = cleaned.verdict.boxes[0]
    assert (left < box[2], right > box[0], top < box[3], bottom > box[1]) == (True,) * 4


def test_colour_is_treated_as_grey_is(phantom):
    frame, box = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (4, 4))
    colour = np.repeat(frame[..., None], 3, axis=2)
    colour[..., 2] //= 3
    (cleaned,) = run([colour])
    assert cleaned.verdict.clean
    assert cleaned.pixels.shape == colour.shape
    assert ink(cleaned.pixels, box) == 0


def test_an_unsure_sector_holds_the_frame_back(phantom):
    frame = np.zeros((240, 320), np.uint8)
    frame[100:125, 100:125] = phantom.speckle((25, 25))
    (cleaned,) = run([frame])
    assert cleaned.verdict.reason == "sector"


def test_a_frame_without_a_picture_passes_as_black():
    (cleaned,) = run([np.full((60, 80), 7, np.uint8)])
    assert cleaned.verdict.clean
    assert not cleaned.pixels.any()


def test_text_that_moves_between_frames_of_a_cine_is_seen_in_its_frame(phantom):
    frames = [phantom.picture(phantom.fan(), seed) for seed in range(8)]
    frames[5], _ = phantom.write(frames[5], "DOE, JANE", (110, 120))
    reasons = [cleaned.verdict.reason for cleaned in run(frames)]
    assert reasons == ["", "", "", "", "", "text", "", ""]


def test_every_frame_is_looked_at_once_and_what_stands_still_once_more(monkeypatch, phantom):
    frames = [phantom.picture(phantom.fan(), seed) for seed in range(6)]
    seen = []

    def look(frame):
        seen.append(frame)
        return []

    monkeypatch.setattr(deidentification, "finder", lambda name: look)
    run([*frames, frames[0]], settings=DeidentifySettings(frames_ahead=4))
    assert [sum(frame is other for other in seen) for frame in frames] == [2, 1, 1, 1, 1, 1]
    assert len(seen) == 8


def test_text_that_stands_in_a_cine_holds_every_frame_back(phantom):
    frames = [
        phantom.write(phantom.picture(phantom.fan(), seed, 110), "DOE, JANE", (110, 120), 14)[0]
        for seed in range(6)
    ]
    assert {cleaned.verdict.reason for cleaned in run(frames)} == {"text"}


def test_frames_after_those_ahead_are_cleaned_with_the_same_mask(phantom):
    settings = DeidentifySettings(frames_ahead=4)
    drawn = [
        phantom.write(phantom.picture(phantom.fan(), seed), "DOE, JANE", (4, 4))
        for seed in range(9)
    ]
    out = run([frame for frame, _ in drawn], settings=settings)
    assert len(out) == 9
    for cleaned, (_, box) in zip(out, drawn, strict=True):
        assert cleaned.verdict.clean
        assert ink(cleaned.pixels, box) == 0


def test_a_missing_frame_stays_missing_and_in_its_place(phantom):
    out = run([None, phantom.picture(phantom.fan()), None])
    assert [cleaned.pixels is None for cleaned in out] == [True, False, True]


def test_frames_are_asked_for_one_by_one_after_those_ahead(phantom):
    asked = []

    def frames():
        for number in range(10):
            asked.append(number)
            yield phantom.picture(phantom.fan(), number)

    stream = deidentify(frames(), DeidentifySettings(frames_ahead=3))
    next(stream)
    assert len(asked) == 3


def test_real_cines_pass_or_wait_as_their_pixels_ask_for():
    """Beside the fan of the first a distance is written; the second has a menu below its sector."""
    for name, wanted, free in (
        ("OBXXXX1A_rle_2frame.dcm", ["", "text"], (slice(70, 112), slice(0, 316))),
        ("examples_ybr_color.dcm", [""] * 30, (slice(225, None), slice(None))),
    ):
        clip = open_dicom(SourceFile(name, str(DICOM / name)))
        frames = clip.decode(range(clip.frames))
        out = run((frame.pixels for frame in frames), clip.header.regions)
        assert [cleaned.verdict.reason for cleaned in out] == wanted
        assert not any(cleaned.pixels[free].any() for cleaned in out)


# --- what the file says of itself ----------------------------------------------------------------


@pytest.mark.parametrize("said", ["burned-in annotation", "recognizable visual features"])
def test_a_file_that_says_that_it_identifies_is_held_back_without_text(phantom, said):
    frames = [phantom.picture(phantom.fan(), seed) for seed in range(5)]
    for count in (1, 5):
        out = run(frames[:count], identifying=said)
        assert {cleaned.verdict.reason for cleaned in out} == {"declared"}
        assert all(cleaned.verdict.cleaned for cleaned in out)  # a person can approve them
    trusting = DeidentifySettings(declared="ignore")
    assert run(frames[:1], settings=trusting, identifying=said)[0].verdict.clean


def test_redaction_does_not_answer_for_what_a_file_says_of_itself(phantom):
    frame, _ = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    (cleaned,) = run([frame], settings=REDACT, identifying="burned-in annotation")
    assert cleaned.verdict.reason == "declared"


# --- redaction -----------------------------------------------------------------------------------


def test_redacted_text_is_black_and_the_rest_is_as_it_was(phantom):
    mask = phantom.fan()
    frame, box = phantom.write(phantom.picture(mask), "DOE, JANE", (110, 120))
    (cleaned,) = run([frame], settings=REDACT)
    assert cleaned.verdict.clean
    assert ink(cleaned.pixels, box) == 0
    assert 0 < cleaned.verdict.redacted < 0.1
    assert (cleaned.pixels[mask] == frame[mask]).mean() > 0.9
    lost = (cleaned.pixels != frame) & mask
    assert cleaned.verdict.redacted == pytest.approx(lost.sum() / mask.sum(), abs=0.03)


def test_text_in_one_frame_of_a_cine_is_redacted_in_that_frame(phantom):
    frames = [phantom.picture(phantom.fan(), seed) for seed in range(6)]
    frames[3], box = phantom.write(frames[3], "DOE, JANE", (110, 120))
    out = run(frames, settings=REDACT)
    assert all(cleaned.verdict.clean for cleaned in out)
    assert [cleaned.verdict.redacted > 0 for cleaned in out] == [False] * 3 + [True] + [False] * 2
    assert ink(out[3].pixels, box) == 0


def test_a_frame_that_redaction_would_take_too_much_from_is_held_back(phantom):
    frame = phantom.picture(phantom.fan())
    for y in range(90, 220, 26):
        frame, _ = phantom.write(frame, "DOE, JANE SMITH", (85, y), 20)
    (cleaned,) = run([frame], settings=REDACT)
    assert cleaned.verdict.reason == "redaction"
    assert cleaned.verdict.redacted > REDACT.max_redacted
    looser = DeidentifySettings(text="redact", max_redacted=0.8)
    assert run([frame], settings=looser)[0].verdict.clean


def test_a_frame_that_still_shows_text_is_held_back(monkeypatch, phantom):
    """A finder that finds more at every look: no number of looks is enough."""
    found = iter(range(100))

    def endless(frame):
        x = 60 + 4 * next(found)
        return [Text((x, 120, x + 6, 126), 0.99)]

    monkeypatch.setattr(deidentification, "finder", lambda name: endless)
    (cleaned,) = run([phantom.picture(phantom.fan())], settings=REDACT)
    assert cleaned.verdict.reason == "text"
    assert cleaned.verdict.cleaned


def test_a_text_of_which_a_part_was_missed_is_found_at_the_next_look(monkeypatch, phantom):
    boxes = iter([(60, 120, 90, 130), (95, 120, 120, 130), None])

    def by_and_by(frame):
        box = next(boxes, None)
        return [Text(box, 0.99)] if box else []

    monkeypatch.setattr(deidentification, "finder", lambda name: by_and_by)
    (cleaned,) = run([phantom.picture(phantom.fan())], settings=REDACT)
    assert cleaned.verdict.clean
    assert cleaned.verdict.boxes == ((60, 120, 90, 130), (95, 120, 120, 130))
    assert not cleaned.pixels[120:130, 60:120].any()


def test_redaction_that_fails_holds_the_frame_back(monkeypatch, phantom):
    def explode(*_):
        raise RuntimeError("Citizen^Jan")

    frame, _ = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    monkeypatch.setattr(deidentification, "redact", explode)
    (cleaned,) = run([frame], settings=REDACT)
    assert cleaned.verdict.reason == "failed: RuntimeError"
    assert cleaned.pixels is None


# --- failing closed ------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["find_sector", "finder", "content_hash", "brightest"])
def test_whatever_fails_nothing_passes(monkeypatch, phantom, broken):
    def explode(*_, **__):
        raise RuntimeError("Citizen^Jan")

    frame, _ = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    monkeypatch.setattr(deidentification, broken, explode)
    (cleaned,) = run([frame])
    assert cleaned.verdict.reason == "failed: RuntimeError"
    assert cleaned.pixels is None
    assert "Citizen" not in cleaned.verdict.describe()


def test_a_frame_that_fails_late_is_held_back_alone(monkeypatch, phantom):
    frames = [phantom.picture(phantom.fan(), seed) for seed in range(5)]
    frames.append(np.zeros((10, 10), np.uint8))
    settings = DeidentifySettings(frames_ahead=4)
    reasons = [cleaned.verdict.reason for cleaned in run(frames, settings=settings)]
    assert reasons == ["", "", "", "", "", "failed: ValueError"]


def test_frames_of_two_sizes_hold_the_whole_clip_back(phantom):
    frames = [phantom.picture(phantom.fan()), np.zeros((10, 10), np.uint8)]
    assert {cleaned.verdict.reason for cleaned in run(frames)} == {"failed: ValueError"}


@given(
    arrays(
        np.uint8,
        st.one_of(
            st.tuples(st.integers(1, 60), st.integers(1, 60)),
            st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)),
        ),
    ),
    st.lists(
        st.builds(Region, *[st.integers(-5, 70) for _ in range(4)], st.integers(0, 6), st.just(1)),
        max_size=2,
    ),
)
@settings(max_examples=60, deadline=None)
def test_what_comes_out_is_the_frame_or_black(frame, regions):
    (cleaned,) = run([frame], regions)
    assert not cleaned.verdict.reason.startswith("failed")
    same = cleaned.pixels == frame
    assert cleaned.pixels.dtype == np.uint8
    assert (same | (cleaned.pixels == 0)).all()


# --- settings ------------------------------------------------------------------------------------


def test_off_passes_frames_through(phantom):
    frame, _ = phantom.write(phantom.picture(phantom.fan()), "DOE, JANE", (110, 120))
    (cleaned,) = run([frame], settings=DeidentifySettings(pixels="off"))
    assert cleaned.verdict.clean
    assert cleaned.pixels is frame


def test_a_rule_for_a_scanner_comes_first(phantom):
    frame = phantom.speckle((100, 200))
    rule = MaskRule(
        manufacturer="ACME", model="One", rows=100, columns=200, keep=((20, 10, 120, 90),)
    )
    settings = DeidentifySettings(masks=(rule,))
    (cleaned,) = run([frame], settings=settings, manufacturer="Acme", model="one")
    expected = np.zeros_like(frame)
    expected[10:90, 20:120] = frame[10:90, 20:120]
    assert cleaned.verdict.method == "rule"
    assert (cleaned.pixels == expected).all()
    for other in (("Acme", "Two"), ("Else", "One"), ("", "")):
        names = dict(zip(("manufacturer", "model"), other, strict=True))
        assert run([frame], settings=settings, **names)[0].verdict.method == "whole"
    smaller = run([frame[:90]], settings=settings, manufacturer="Acme", model="One")
    assert smaller[0].verdict.method == "whole"


def test_text_in_what_a_rule_keeps_is_still_seen(phantom):
    frame, _ = phantom.write(phantom.speckle((100, 200), level=50), "DOE, JANE", (60, 40))
    rule = MaskRule(rows=100, columns=200, keep=((0, 0, 200, 100),))
    (cleaned,) = run([frame], settings=DeidentifySettings(masks=(rule,)))
    assert cleaned.verdict.reason == "text"


def test_a_rule_outside_the_frame_is_refused():
    with pytest.raises(ValidationError, match="not a rectangle inside"):
        MaskRule(rows=10, columns=10, keep=((0, 0, 11, 5),))


# --- verdicts ------------------------------------------------------------------------------------

BOXES = st.tuples(*[st.integers(0, 4000) for _ in range(4)])
REASONS = st.sampled_from(["text", "sector", "redaction", "declared", "failed: ValueError"])
SHARES = st.integers(0, 1000).map(lambda number: number / 1000)


@given(
    st.builds(
        Verdict,
        reason=REASONS,
        score=SHARES,
        boxes=st.lists(BOXES, max_size=4).map(tuple),
        confidence=SHARES,
        method=st.sampled_from(["", "texture", "declared+motion"]),
        cleaned=st.sampled_from(["", "0123456789abcdef"]),
        redacted=SHARES,
    )
)
def test_a_described_verdict_reads_back(verdict):
    assert Verdict.parse(verdict.describe()) == verdict


@given(st.text(), st.text(), st.text())
def test_the_context_of_a_verdict_reads_back_whatever_is_in_it(organ, device, group):
    verdict, context = Verdict("text", 0.9, ((1, 2, 3, 4),)), Context(organ, device, group)
    assert split_context(verdict.describe() + context.describe()) == (verdict, context)
    assert split_context(verdict.describe()) == (verdict, Context())


def test_another_message_is_no_verdict():
    with pytest.raises(ValueError, match="not the description"):
        Verdict.parse("the file is empty (0 bytes)")


def test_verdicts_are_values():
    assert dataclasses.replace(Verdict("text"), score=0.5).reason == "text"


def test_a_bare_off_of_yaml_is_off():
    assert DeidentifySettings(pixels=False).pixels == "off"
    with pytest.raises(ValidationError):
        DeidentifySettings(pixels=True)
