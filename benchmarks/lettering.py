"""Lettering as scanners and people write it into frames: scripts, fonts, layouts, inks.

Shared by the measurement of de-identification and by the fit of its text finder. The fonts are
those of Debian's packages, see ``FONTS``; Pillow's Raqm layout joins and orders the letters.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

PACKAGES = (
    "fonts-noto-core fonts-noto-cjk fonts-hosny-amiri fonts-sil-scheherazade fonts-kacst "
    "fonts-farsiweb fonts-nafees culmus fonts-lohit-deva fonts-gargi fonts-sahadeva "
    "fonts-lohit-beng-bengali fonts-lohit-taml fonts-lohit-telu fonts-thai-tlwg fonts-nanum "
    "fonts-unfonts-core fonts-wqy-zenhei fonts-wqy-microhei fonts-vlgothic fonts-ipafont-gothic "
    "fonts-liberation fonts-freefont-ttf fonts-lato fonts-roboto-unhinted fonts-inconsolata"
)  # of Debian


@dataclass(frozen=True)
class Script:
    """A script: fonts that the fit used, fonts that it never saw, names, and its letters.

    Attributes:
        known: Patterns of font files used by the fit.
        unseen: Patterns of font files for measuring alone; where there are none, the known ones.
        names: Names of persons and places, for measuring alone.
        letters: What the fit writes at random.
        marks: Vowel signs and the like, which follow a letter.
    """

    known: tuple[str, ...]
    unseen: tuple[str, ...]
    names: tuple[str, ...]
    letters: str
    marks: str = ""


def _range(first: int, last: int) -> str:
    return "".join(chr(code) for code in range(first, last + 1))


_LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ARABIC = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي" * 2 + "ىةأإؤئ"
_SANS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "NotoSans-Regular.ttf", "NotoSans-Bold.ttf")

SCRIPTS: dict[str, Script] = {
    "Latin": Script(
        (
            *_SANS,
            "DejaVuSansMono*.ttf",
            "DejaVuSerif.ttf",
            "NotoSerif-Regular.ttf",
            "NotoSansDisplay-Condensed.ttf",
            "Lato-*.ttf",
            "Roboto-*.ttf",
            "Inconsolata*",
        ),
        (
            "LiberationSans-Regular.ttf",
            "LiberationSans-Bold.ttf",
            "LiberationMono-Regular.ttf",
            "LiberationSerif-Regular.ttf",
            "FreeSans.ttf",
            "FreeMono.ttf",
            "cmss10.ttf",
            "STIXGeneral.ttf",
        ),
        (
            "SMITH, JOHN",
            "Citizen^Jan",
            "ST. MARY HOSPITAL",
            "Mueller Anna",
            "GARCIA LOPEZ",
            "Weber",
        ),
        _LATIN + _LATIN + "0123456789",
    ),
    "Greek": Script(
        (*_SANS, "NotoSerif-Regular.ttf"),
        ("LiberationSans-Regular.ttf", "FreeSans.ttf", "FreeSerif.ttf"),
        ("Παπαδόπουλος", "ΓΕΩΡΓΙΟΥ ΜΑΡΙΑ", "Νικολάου Άννα", "Ελένη"),
        _range(0x391, 0x3A1) + _range(0x3A3, 0x3A9) + _range(0x3B1, 0x3C9),
    ),
    "Cyrillic": Script(
        (*_SANS, "NotoSerif-Regular.ttf"),
        ("LiberationSans-Regular.ttf", "FreeSans.ttf", "FreeSerif.ttf"),
        ("Иванов Пётр", "КУЗНЕЦОВА", "Шевченко Ольга", "Димитров"),
        _range(0x410, 0x44F),
    ),
    "Hebrew": Script(
        ("NotoSansHebrew-Regular.ttf", "NotoSerifHebrew-*.ttf", "NotoSansHebrew-Bold.ttf"),
        ("MiriamCLM-Book.ttf", "FrankRuehlCLM-Medium.ttf", "NachlieliCLM-Bold.otf"),
        ("משה כהן", "לוי שרה", "אברהם יצחקי", "רחל"),
        _range(0x5D0, 0x5EA),
    ),
    "Arabic": Script(
        (
            "NotoNaskhArabic-*.ttf",
            "NotoSansArabic-*.ttf",
            "NotoKufiArabic-*.ttf",
            "KacstBook.ttf",
            "KacstOffice.ttf",
            "KacstNaskh.ttf",
            "KacstPoster.ttf",
            "Scheherazade-*.ttf",
            "DejaVuSans.ttf",
        ),
        ("Amiri-Regular.ttf", "Amiri-Bold.ttf"),
        ("محمد عبد الله", "فاطمة الزهراء", "خالد حسين", "مستشفى الشفاء", "ليلى"),
        _ARABIC,
    ),
    "Persian": Script(
        ("NotoNaskhArabic-*.ttf", "NotoSansArabic-Regular.ttf", "KacstFarsi.ttf", "DejaVuSans.ttf"),
        ("nazli.ttf", "homa.ttf", "titr.ttf"),
        ("محمدرضا پهلوان", "زهرا کریمی", "گیتی چراغی", "بیمارستان پارس"),
        _ARABIC + "پچژگکی",
    ),
    "Urdu (Naskh)": Script(
        ("NotoNaskhArabic-*.ttf", "NotoSansArabic-*.ttf"),
        ("NafeesWeb.ttf",),
        ("محمد اقبال", "فاطمہ بیگم", "ڈاکٹر طاہر", "لاہور"),
        _ARABIC + "پچژگکیٹڈڑںھہے",
    ),
    "Urdu (Nastaliq)": Script(
        ("NotoNastaliqUrdu-Bold.ttf", "NotoNastaliqUrdu-Regular.ttf"),
        (),
        ("محمد اقبال", "فاطمہ بیگم", "ڈاکٹر طاہر", "لاہور"),
        _ARABIC + "پچژگکیٹڈڑںھہے",
    ),
    "Devanagari (Hindi)": Script(
        (
            "NotoSansDevanagari-Regular.ttf",
            "NotoSansDevanagari-Bold.ttf",
            "NotoSerifDevanagari-*.ttf",
            "Gargi.ttf",
        ),
        ("Lohit-Devanagari.ttf", "sahadeva.ttf"),
        ("राजेश कुमार", "सुनीता शर्मा", "अमित पटेल", "दिल्ली"),
        _range(0x915, 0x939),
        _range(0x93E, 0x948) + "्ंँ",
    ),
    "Bengali": Script(
        ("NotoSansBengali-*.ttf", "NotoSerifBengali-Regular.ttf"),
        ("Lohit-Bengali.ttf",),
        ("রহিম উদ্দিন", "শেখ মুজিব", "অনন্যা বসু", "ঢাকা"),
        _range(0x995, 0x9A8) + _range(0x9AA, 0x9B0),
        "ািীুূেৈোৌ্",
    ),
    "Tamil": Script(
        ("NotoSansTamil-*.ttf", "NotoSerifTamil-Regular.ttf"),
        ("Lohit-Tamil.ttf",),
        ("முருகன் செல்வம்", "லட்சுமி", "கார்த்திக்", "சென்னை"),
        "கஙசஞடணதநபமயரலவழளறன",
        "ாிீுூெேைொோ்",
    ),
    "Telugu": Script(
        ("NotoSansTelugu-*.ttf", "NotoSerifTelugu-Regular.ttf"),
        ("Lohit-Telugu.ttf",),
        ("వెంకట రావు", "లక్ష్మి దేవి", "శ్రీనివాస్", "హైదరాబాద్"),
        _range(0xC15, 0xC28) + _range(0xC2A, 0xC30),
        "ాిీుూెేైొో్",
    ),
    "Thai": Script(
        ("NotoSansThai-*.ttf", "NotoSerifThai-Regular.ttf", "Garuda.ttf", "Loma.ttf"),
        ("Kinnari.ttf", "Waree.ttf", "TlwgTypewriter.ttf", "Norasi.ttf"),
        ("สมชาย ใจดี", "มาลี ศรีสุข", "ประยุทธ์", "กรุงเทพ"),
        _range(0xE01, 0xE2E),
        "ะัาิีึืุู่้",
    ),
    "Georgian": Script(
        ("NotoSansGeorgian-*.ttf", "NotoSerifGeorgian-Regular.ttf"),
        ("DejaVuSans.ttf", "DejaVuSerif.ttf", "FreeSerif.ttf"),
        ("ნინო ბერიძე", "გიორგი", "თამარ კაპანაძე"),
        _range(0x10D0, 0x10F0),
    ),
    "Armenian": Script(
        ("NotoSansArmenian-*.ttf", "NotoSerifArmenian-Regular.ttf"),
        ("DejaVuSans.ttf", "FreeSerif.ttf"),
        ("Արամ Խաչատրյան", "ՊԵՏՐՈՍՅԱՆ", "Աննա"),
        _range(0x531, 0x556) + _range(0x561, 0x586),
    ),
    "Ethiopic (Amharic)": Script(
        ("NotoSansEthiopic-*.ttf",),
        ("NotoSerifEthiopic-Regular.ttf",),
        ("አበበ ቢቂላ", "ሰላማዊት", "ገብረመድህን"),
        _range(0x1208, 0x1246) + _range(0x1260, 0x1286),
    ),
    "Korean": Script(
        ("NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc", "UnDotum.ttf", "UnBatang.ttf"),
        ("NanumGothic.ttf", "NanumMyeongjo.ttf", "NanumGothicCoding.ttf"),
        ("김민수", "박지영", "서울대학교병원", "이영희"),
        _range(0xAC00, 0xD7A3),
    ),
    "Chinese": Script(
        ("NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc", "wqy-microhei.ttc"),
        ("wqy-zenhei.ttc",),
        ("王小明", "李静怡", "北京协和医院", "张伟"),
        _range(0x4E00, 0x6FFF),
    ),
    "Japanese": Script(
        ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", "ipag.ttf"),
        ("VL-Gothic-Regular.ttf", "VL-PGothic-Regular.ttf"),
        ("佐藤 花子", "タナカ ハナコ", "やまだ たろう", "東京大学病院"),
        _range(0x3041, 0x3093)
        + _range(0x30A1, 0x30F3)
        + "日本人山田中村小林佐藤高橋渡辺加木病院東京大阪",
    ),
}

# Scripts for the fit alone: what is right for all of them is no trait of one.
OTHERS: dict[str, Script] = {
    name: Script((f"NotoSans{name}-*.ttf", f"NotoSerif{name}-Regular.ttf"), (), (), _range(*codes))
    for name, codes in {
        "Gujarati": (0xA95, 0xAB0), "Gurmukhi": (0xA15, 0xA28), "Kannada": (0xC95, 0xCA8),
        "Malayalam": (0xD15, 0xD28), "Sinhala": (0xD9A, 0xDB1), "Lao": (0xEA1, 0xEAB),
        "Khmer": (0x1780, 0x17A2), "Myanmar": (0x1000, 0x1020), "Tibetan": (0xF40, 0xF47),
        "Syriac": (0x712, 0x72C), "Mongolian": (0x1820, 0x1842), "NKo": (0x7CA, 0x7E7),
        "Cherokee": (0x13A0, 0x13EF), "Thaana": (0x780, 0x7A5), "Tifinagh": (0x2D30, 0x2D65),
    }.items()
}  # fmt: skip


@lru_cache
def _files() -> dict[str, Path]:
    folders = [
        Path(os.environ.get("ECHOSTILL_FONTS", "/usr/share/fonts")),
        Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf",
    ]
    return {file.name: file for folder in folders for file in sorted(folder.rglob("*.*"))}


@lru_cache
def font_files(patterns: tuple[str, ...]) -> list[Path]:
    """Return the installed font files of some patterns.

    Raises:
        SystemExit: None is installed, or Pillow cannot join letters.
    """
    if not features.check("raqm"):
        raise SystemExit("Pillow has no Raqm here: joined scripts cannot be drawn.")
    found = [file for name, file in _files().items() for p in patterns if Path(name).match(p)]
    if not found:
        raise SystemExit(f"no font of {patterns} is installed: apt-get install {PACKAGES}")
    return found


@lru_cache(maxsize=5000)
def _font(file: Path, size: int) -> Any:
    return ImageFont.truetype(file, size)


def random_text(script: Script, length: int, generator: np.random.Generator) -> str:
    """Return letters of a script, marks among them, with a space here and there.

    Latin is written as scanners write: capitals, words, numbers, dates and settings.
    """
    letters, text = script.letters, ""
    if letters.startswith(_LATIN):
        parts = ("0123456789", "0123456789./:-", _LATIN[:26], _LATIN[:26] + "0123456789", _LATIN)
        letters = parts[generator.integers(len(parts))] if generator.random() < 0.7 else letters
    for _ in range(length):
        text += letters[generator.integers(len(letters))]
        if script.marks and generator.random() < 0.4:
            text += script.marks[generator.integers(len(script.marks))]
        if generator.random() < 0.12:
            text += " "
    return text.strip()


def ink_of(
    text: str,
    file: Path,
    size: int,
    angle: float = 0,
    stacked: bool = False,
    coarse: bool = False,
) -> np.ndarray:
    """Draw a text alone.

    Args:
        text: One line.
        file: The font.
        size: In pixels.
        angle: Counter-clockwise, in degrees.
        stacked: Letters below each other.
        coarse: Without half-tones, as in the fonts of old scanners.

    Returns:
        (H, W, 2) uint8 without borders: how much ink lies on each pixel, and 255 where the line is.
    """
    font = _font(file, size)
    lines = [letter for letter in text if letter != " "] if stacked else [text]
    boxes = [font.getbbox(line) for line in lines]
    width = max(int(box[2] - box[0]) for box in boxes) + 2
    heights = [max(int(box[3] - box[1]), 1) + (size // 8 if stacked else 0) for box in boxes]
    picture = Image.new("L", (width, sum(heights) + 2))
    pen, top = ImageDraw.Draw(picture), 1
    for line, box, height in zip(lines, boxes, heights, strict=True):
        left = (width - (box[2] - box[0])) / 2 if stacked else 1
        pen.text((left - box[0], top - box[1]), line, fill=255, font=font)
        top += height
    picture = picture.crop(picture.getbbox() or (0, 0, 1, 1))
    if coarse:
        picture = picture.point([0] * 110 + [255] * 146)
    line = Image.new("L", picture.size, 255)
    if angle:
        turned = {"expand": True, "resample": Image.Resampling.BICUBIC}
        picture, line = picture.rotate(angle, **turned), line.rotate(angle, **turned)
    return np.stack([np.asarray(picture), np.asarray(line)], axis=2)


def blend(
    pixels: np.ndarray, ink: np.ndarray, at: Sequence[int], colour: Sequence[float]
) -> np.ndarray:
    """Lay ink (H, W) uint8 of a colour over RGB pixels at (column, row); a new array."""
    x, y = at
    height, width = ink.shape
    out = pixels.copy()
    share = ink[..., None].astype(np.float32) / 255
    part = out[y : y + height, x : x + width]
    out[y : y + height, x : x + width] = np.rint(part * (1 - share) + np.array(colour) * share)
    return out
