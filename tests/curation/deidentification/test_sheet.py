"""The review sheet: what it shows, and in a browser that its keys decide."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from echostill.curation.deidentification import review
from echostill.curation.deidentification.sheet import write_sheet
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def rows(count=5):
    return [
        {
            "image_id": f"{number:032x}",
            "source": f"frame {number} </script>",
            "reason": "text" if number % 2 else "sector",
            "score": number / 10,
            "boxes": [[1, 2, 3, 4]],
            "confidence": 1.0,
            "method": "texture",
            "cleaned": "ab" if number else "",
            "redacted": 0.0,
            "organ": "liver" if number < 3 else "",
            "device": "ACME",
            "group_id": f"group {number // 2}",
        }
        for number in range(count)
    ]


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "store"))
    table = pa.Table.from_pylist(rows(), schema=review.REVIEW_SCHEMA)
    write_table(review.review_storage(store), table, stage="ingest", fingerprint={})
    return store


def with_pictures(store, numbers):
    pictures = review.prepare_pictures(store)
    for number in numbers:
        pictures.write(f"{number:032x}.png", b"")
    return pictures


def test_the_sheet_has_every_frame_with_a_picture_that_nobody_approved(store):
    with_pictures(store, range(4))
    review.decide(store.root, "approve", [f"{2:032x}"], reason="a scale")
    where = write_sheet(store.root)
    assert f"/{review.PICTURES}/" in where
    page = Path(where).read_text(encoding="utf-8")
    data = json.loads(re.search(r"const DATA = (.*);\n", page)[1])
    assert [row["image_id"] for row in data["rows"]] == [f"{n:032x}" for n in (0, 1, 3)]
    assert data["rows"][0]["organ"] == "liver"
    assert page.count("</script>") == 1  # that of a source's name is written otherwise


def test_without_pictures_it_says_how_to_get_them(store):
    with pytest.raises(UsageError, match="review_pixels=true"):
        write_sheet(store.root)


def test_with_nothing_to_review_there_is_no_sheet(store):
    with_pictures(store, range(5))
    wanted = [f"{number:032x}" for number in range(1, 5)]
    review.decide(store.root, "approve", wanted, reason="scales")
    table = pa.Table.from_pylist(rows()[1:], schema=review.REVIEW_SCHEMA)
    write_table(review.review_storage(store), table, stage="ingest", fingerprint={})
    with pytest.raises(UsageError, match="no frame is held back"):
        write_sheet(store.root)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_keys_filters_and_whole_groups_decide(store, tmp_path):
    from playwright.sync_api import sync_playwright

    with_pictures(store, range(5))
    where = write_sheet(store.root)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"file://{where}")
        assert page.locator("figure").count() == 5
        page.select_option("#reason", label="text (2)")
        assert page.locator("figure").count() == 2
        page.locator("body").press("a")  # the first of them, which then is no longer undecided
        assert page.locator("figure").count() == 1
        page.locator("body").press("r")
        assert page.locator("figure").count() == 0
        page.select_option("#reason", label="all")
        page.select_option("#group_id", label="group 1 (2)")
        page.click("#approve")
        page.select_option("#group_id", label="all")
        page.click("#approve")  # the rest; what has no cleaned pixels cannot be approved
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "approved.txt")
        assert "3 approved, 1 rejected of 5" in page.inner_text("#count")
        assert "approved.txt" in page.inner_text("#command")
        browser.close()
    assert errors == []
    approved = (tmp_path / "approved.txt").read_text().split()
    assert approved == [f"{number:032x}" for number in (1, 2, 4)]
    assert (
        review.decide(store.root, "approve", [str(tmp_path / "approved.txt")], reason="scales") == 3
    )
