"""The explorer in a real browser: map, search, explanation, comparison, picking, pins."""

import json
import os
import shutil
from pathlib import Path

import pytest

from echostill.curation.deidentification.decisions import approved_pixels
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.store import Store, finish_run

AXE = Path(__file__).parents[3] / "explorer" / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",  # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
]
VIEWS = [
    "map",
    "gallery",
    "clusters",
    "coreset",
    "compare",
    "store",
    "pick",
    "pins",
    "review",
    "withdraw",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Visit:
    """A page of the explorer, and what it asked for and complained about."""

    def __init__(self, context, live, token, size=(1280, 800)):
        self.page = context.new_page()
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.complaints, self.requests, self.url = [], [], live.url
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{live.url}/#token={token}")
        self.page.wait_for_selector(".plot[data-ready=true] canvas", timeout=60_000)

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def go(self, where, selector):
        self.page.evaluate(f"location.hash = '#/{where}'")
        self.page.wait_for_selector(selector, timeout=30_000)

    def elsewhere(self):
        own = (self.url, "blob:" + self.url, "data:")
        return [request for request in self.requests if not request.startswith(own)]

    def violations(self):
        """Serious findings of axe: id and the first element."""
        found = self.page.evaluate(
            "async source => { if (!window.axe) (0, eval)(source);"
            " return (await axe.run(document)).violations.map("
            "v => [v.impact, v.id, v.nodes[0].html]); }",
            AXE.read_text(),
        )
        return [finding for finding in found if finding[0] in ("serious", "critical")]


@pytest.fixture
def visit(browser, own_store, make):
    running = make["running"](own_store)
    # The page's own policy forbids eval; axe needs it, and is not the page's.
    context = browser.new_context(bypass_csp=True)
    context.set_default_timeout(30_000)
    yield Visit(context, running.live, make["token"])
    context.close()
    running.stop()


def test_pick_find_why_compare_pin(visit, own_store, make):
    page = visit.page
    assert "token" not in page.url  # taken from the address at once

    # Pick a coreset, see it done, look at it.
    visit.go("pick", "input[required]")
    page.get_by_label("name", exact=True).fill("half")
    page.get_by_label("budget", exact=True).fill("120")
    page.get_by_label("clusters", exact=True).fill("8")
    page.get_by_role("button", name="Pick").click()
    page.wait_for_selector(".job:has-text('half'):has-text('done')", timeout=120_000)
    make["pick"](own_store, name="again", budget=120)
    tables = [
        sorted((own_store / "coresets" / name).glob("part-*.parquet"))[0].read_bytes()
        for name in ("half", "again")
    ]
    assert tables[0] == tables[1]  # as `echostill select` picks it

    # Compare it with the first.
    visit.go("compare?a=default&b=half", ".verdict")
    assert "entered" in page.inner_text("main").lower()

    # Find an image, read why.
    page.keyboard.press("/")
    page.keyboard.type("scan_0017")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    page.locator(".card").first.click()
    page.wait_for_selector(".verdict")
    page.wait_for_selector(".image .grid.small .card >> nth=10")  # neighbours and cluster
    words = page.inner_text("main")
    assert "scan_0017.png" in words
    assert "rank in its cluster" in words
    page.wait_for_selector(".image-head img")  # the picture came, with the token

    # Pin it, and see that it is written down.
    page.keyboard.press("p")
    page.get_by_label("Your name").fill("anna")
    page.get_by_label("Reason").fill("typical view")
    page.get_by_role("button", name="Save").click()
    page.wait_for_selector(".messages:has-text('Saved')")
    visit.go("pins", "table")
    assert "typical view" in page.inner_text("table")

    assert visit.complaints == []
    assert visit.elsewhere() == []


def test_frames_held_back_are_reviewed_with_keys(visit, own_store, make):
    page, store = visit.page, Store(str(own_store))
    frames = [f"{number:08x}" + "e" * 24 for number in range(6)]
    visit.go("review?sort=image_id", ".frame img")
    assert page.locator(".frame").count() == 6
    page.locator(".frame").first.focus()
    page.keyboard.press("a")  # nobody has said who decides
    page.get_by_text("Give your name and a reason first").wait_for()
    main = page.locator("main")
    main.get_by_label("Your name").fill("R. Reader")
    main.locator("input[placeholder]").fill("scale marks")

    page.locator(".frame").first.focus()
    for key in ("a", "r", "a", "ArrowLeft", "u"):
        page.keyboard.press(key)
    page.get_by_text("3 decided here").wait_for()
    page.get_by_role("button", name="Save and reload").click()
    page.wait_for_function("document.querySelectorAll('.frame').length === 4")
    assert approved_pixels(store) == {frames[0]: f"{0:064x}"}

    # A whole group at once: the one that could not be cleaned stays.
    main.get_by_label("Group any").select_option("study2")
    page.wait_for_function("document.querySelectorAll('.frame').length === 2")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Approve all shown").click()
    page.get_by_text("1 decided; 1 have no cleaned pixels to approve").wait_for()
    assert set(approved_pixels(store)) == {frames[0], frames[4]}
    assert visit.complaints == []


def test_results_are_renamed_and_deleted_after_a_question(visit, own_store):
    page, store = visit.page, Store(str(own_store))
    made = {"coreset": store.open_coreset("spread").digest}
    wanted = Fingerprint({"seed": 0}, "1", {}, made)
    run = store.run("student-0")
    run.write("fingerprint.json", json.dumps(wanted.as_dict()).encode())
    finish_run(run, stage="distill", files=[], fingerprint=wanted)

    # Renamed: the run that was made from it still names it.
    visit.go("store", "table")
    page.get_by_role("button", name="Rename coresets/spread").click()
    page.get_by_label("New name").fill("wide")
    page.get_by_role("button", name="Rename", exact=True).click()
    page.get_by_text("coresets/spread is now coresets/wide").wait_for()
    row = page.locator("tr", has=page.get_by_role("link", name="wide"))
    assert "runs/student-0" in row.inner_text()
    assert store.coreset_names() == ["default", "wide"]

    # Deleted: not before one agrees that something was made from it.
    delete = page.get_by_role("button", name="Delete coresets/wide")
    delete.click()
    agree = page.get_by_label("Although runs/student-0 was made from it")
    if AXE.exists():
        assert visit.violations() == []
    page.get_by_role("button", name="Delete", exact=True).click()
    assert agree.is_visible()  # the form asks for the tick
    page.get_by_role("button", name="Cancel").click()
    assert store.coreset_names() == ["default", "wide"]
    delete.click()
    agree.check()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("Deleted coresets/wide").wait_for()
    assert store.coreset_names() == ["default"]
    page.get_by_text("another coreset").wait_for()  # what the run was made from

    # The estimate follows the form, and methods say what they do.
    visit.go("pick", ".estimate table")
    page.get_by_label("budget", exact=True).fill("80")
    page.get_by_label("balance", exact=True).fill("organ")
    page.locator(".estimate", has_text="80 of 236").get_by_text("Images by organ").wait_for()
    cells = page.locator(".estimate tbody td:last-child").all_inner_texts()
    assert cells == ["20"] * 4
    page.get_by_label("large gradients").last.check()
    page.get_by_label("budget", exact=True).fill("900")
    page.locator(".estimate").get_by_text("budget 900").wait_for()

    # A coreset's page on paper: no buttons, all facts.
    visit.go("coreset", ".facts")
    page.emulate_media(media="print")
    assert not page.get_by_role("button", name="Print").is_visible()
    assert not page.locator("header").is_visible()
    assert store.open_coreset("default").digest in page.inner_text(".facts")
    assert [text for text in visit.complaints if "422" not in text] == []


def test_a_group_is_withdrawn_after_a_look_and_waste_is_deleted(own_cache, visit, own_store):
    page, image = visit.page, Store(str(own_store)).open_pool().read(["image_id"])["image_id"][30]
    (own_store / "cache").mkdir()
    (own_store / "cache" / "a.npy").write_bytes(b"0")
    visit.go("store", "form:has-text('Not needed')")
    page.get_by_label("This cannot be undone").check()
    page.get_by_role("button", name="Delete what is not needed").click()
    page.wait_for_selector(".messages:has-text('Deleted 1')")
    assert not (own_store / "cache").exists()

    visit.go("withdraw", "form.pick")
    page.locator("input[value=group]").check()
    page.get_by_label("id", exact=True).fill("clip5")
    page.get_by_role("textbox", name="reason", exact=True).fill("consent was withdrawn")
    page.get_by_role("button", name="Show what would go").click()
    page.wait_for_selector(".receipt:has-text('Would go: 6 images')")
    assert "chosen images go" in page.inner_text(".receipt")
    page.get_by_label("This cannot be undone").check()
    page.get_by_role("button", name="Withdraw 6 images").click()
    page.wait_for_selector("[role=status]:has-text('The receipt is w-000001')", timeout=120_000)
    page.get_by_text("6 images. consent was withdrawn").click()
    page.wait_for_selector("details[open]:has-text('Removed: 6 images')")
    visit.go(f"image/{image.as_py()}", ".messages:has-text('no image')")
    # While nobody may read the store, and for what is gone.
    assert [text for text in visit.complaints if "503" not in text and "404" not in text] == []


def test_an_image_that_was_not_scored_says_why(visit, make):
    visit.go(f"image/{make['identity'](239)}", ".verdict")
    visit.page.wait_for_selector(".image-head img")
    assert "quarantine at score" in visit.page.inner_text(".verdict")
    assert visit.page.inner_text(".messages") == ""
    assert visit.complaints == []


def test_lasso_and_keys_on_the_map(visit):
    page = visit.page
    page.get_by_role("button", name="Lasso").click()
    box = page.locator(".plot").bounding_box()
    left, top, right, bottom = (
        box["x"] + 3,
        box["y"] + 3,
        box["x"] + box["width"] - 3,
        box["y"] + box["height"] - 3,
    )
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    page.wait_for_selector(".caught .card")
    assert "236 images in the lasso" in page.inner_text(".caught")
    page.keyboard.press("Escape")
    assert page.locator(".caught").count() == 0
    page.keyboard.press("g")
    page.wait_for_selector(".gallery .card")
    assert visit.complaints == []


def test_the_point_under_the_pointer_is_the_nearest(visit):
    wrong = visit.page.evaluate(
        """() => {
          const canvas = document.querySelector(".plot").canvasOfMap;
          const { x, y, count } = canvas.points;
          const box = canvas.parent.getBoundingClientRect();
          const wrong = [];
          let near = 0;
          for (let k = 0; k < 400; k++) {
            // Around points and anywhere, also outside the map's own extent.
            const event = { clientX: box.left + box.width * ((k * 0.618) % 1),
                            clientY: box.top + box.height * ((k * 0.414) % 1) };
            if (k % 2) {
              const scale = 2 ** canvas.view.zoom, i = k % count;
              const [right, up] = [x[i] - canvas.view.target[0], y[i] - canvas.view.target[1]];
              event.clientX = box.left + box.width / 2 + right * scale + (k % 7) - 3;
              event.clientY = box.top + box.height / 2 - up * scale + (k % 5) - 2;
            }
            const [px, py] = canvas.position(event);
            let best = (12 / 2 ** canvas.view.zoom) ** 2, index = -1;
            for (let i = 0; i < count; i++) {
              const square = (x[i] - px) ** 2 + (y[i] - py) ** 2;
              if (square < best) { best = square; index = i; }
            }
            near += index >= 0;
            if (canvas.at(event, 12) !== index) wrong.push([k, index]);
          }
          return near >= 200 ? wrong : ["too few near"];
        }"""
    )
    assert wrong == []


@pytest.mark.skipif(not AXE.exists(), reason="`make explorer` brings axe-core")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accessible(visit, theme):
    visit.page.get_by_label("Theme").select_option(theme)
    for view in VIEWS:
        visit.go(view, "main h1")
        visit.page.wait_for_timeout(300)
        assert visit.violations() == [], view


def test_fits_a_phone(browser, running, make):
    context = browser.new_context()
    visit = Visit(context, running.live, make["token"], size=(390, 800))
    for view in VIEWS:
        visit.go(view, "main h1")
        visit.page.wait_for_timeout(300)  # what it shows is there
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390, view
    context.close()


def test_without_a_token(browser, live):
    context = browser.new_context()
    page = context.new_page()
    page.goto(live.url)
    page.wait_for_selector("input[type=password]")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("input[type=password]")
    context.close()


def test_ci_brings_what_these_tests_skip_without():
    if os.environ.get("CI"):
        assert CHROMIUM
        assert AXE.exists()
