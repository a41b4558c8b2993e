import numpy as np
import pytest

from echostill.platform.imaging.images import NoImageError
from echostill.platform.imaging.viewers import (
    Viewers,
    looks_like_ultrasound,
    refuse_viewer_picture,
)

DISC = ("DICOMDIR", "DICOM/IM1", "DICOM/IM2")


@pytest.mark.parametrize(
    "beside",
    ["VIEWER/autorun.inf", "VIEWER/run.EXE", "VIEWER/index.htm", "VIEWER/style.css"],
)
def test_a_picture_in_the_folder_of_a_program_may_be_the_programs(beside):
    assert Viewers([*DISC, beside]).claim("VIEWER/photo.png") == "beside"


def test_on_a_disc_so_may_the_pictures_in_folders_within_and_in_folders_called_so():
    viewers = Viewers([*DISC, "APP/run.exe"])
    assert viewers.claim("APP/res/skin/one.png") == "beside"
    assert viewers.claim("Help/one.png") == "beside"
    assert viewers.claim("My-Viewer/pictures/one.png") == "beside"


def test_what_lies_beside_no_program_is_nobodys_elses():
    viewers = Viewers([*DISC, "run.exe"])  # in the disc's own folder
    assert viewers.claim("EXPORT/1.jpg") == ""
    assert viewers.claim("DICOM/1.jpg") == ""
    assert Viewers(["VIEWER/run.exe"]).claim("VIEWER/patients/1.jpg") == ""  # no DICOM: an export
    assert Viewers(["set/README.html", *DISC]).claim("set/1.png") == ""
    assert Viewers(["1.png", "LICENSE", "help/1.png"]).claim("help/1.png") == ""


@pytest.mark.parametrize(
    "name",
    [
        "logo.png",
        "a/Hospital_Logo.jpg",
        "favicon.png",
        "icon-32x32.png",
        "icons.gif",
        "logo_small.png",
    ],
)
def test_a_logo_is_one_wherever_it_lies(name):
    assert Viewers().claim(name) == "named"


@pytest.mark.parametrize("name", ["iconic.png", "silicon.png", "patient12.png", "logopenic/1.png"])
def test_a_name_that_only_resembles_one_is_none(name):
    assert Viewers().claim(name) == ""


def test_a_background_is_a_programs_only_beside_it():
    assert Viewers().claim("background_001.png") == ""
    assert Viewers(["web/index.html"]).claim("web/background_001.png") == "named"


def speckle(height=200, width=240, seed=0):
    g = np.random.default_rng(seed)
    value = np.clip(60 * g.rayleigh(1.0, (height, width)), 0, 255).astype(np.uint8)
    value[:, : width // 4] = 0
    return value


def test_speckle_looks_like_ultrasound_also_with_colour_flow_in_it():
    grey = speckle()
    assert looks_like_ultrasound(grey)
    colour = np.repeat(grey[..., None], 3, axis=2)
    colour[60:120, 80:160] = (200, 30, 10)
    assert looks_like_ultrasound(colour)


def test_icons_pages_drawings_and_photos_do_not():
    assert not looks_like_ultrasound(speckle(48, 64))
    page = np.full((300, 400), 255, dtype=np.uint8)
    page[100:140] = speckle(40, 400)
    assert not looks_like_ultrasound(page)
    x = np.linspace(0, 200, 400).astype(np.uint8)
    assert not looks_like_ultrasound(np.broadcast_to(x, (300, 400)))
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    assert not looks_like_ultrasound(noise)
    assert not looks_like_ultrasound(np.zeros((300, 400), dtype=np.uint8))


def test_ultrasound_beside_a_program_is_kept_and_what_is_named_a_logo_is_not():
    refuse_viewer_picture(speckle(), "beside")
    refuse_viewer_picture(speckle(48, 64), "")
    for pixels, claim in ((speckle(48, 64), "beside"), (speckle(), "named")):
        with pytest.raises(NoImageError) as raised:
            refuse_viewer_picture(pixels, claim)
        assert raised.value.kind == "pictures of a viewer or web page"
