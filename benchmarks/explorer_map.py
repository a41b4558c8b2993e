"""How the explorer's map behaves in a browser: first picture, dragging, hovering, zooming, lasso.

It opens the explorer of a running service in headless Chromium, without a graphics card, and
measures the gaps between frames while the mouse drags the map, fast and slowly. `--points` puts
so many made-up points in the place of the service's own, so that a service over any store will do.

    echostill serve STORE --port 8000
    python benchmarks/explorer_map.py --url http://127.0.0.1:8000 --token TOKEN [--points 3000000]
"""

import argparse
import contextlib
import http.server
import io
import json
import shutil
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from machine import describe_machine

FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
FRAMES = """() => {
  window.gaps = [];
  let last = performance.now();
  const tick = now => { gaps.push(now - last); last = now; requestAnimationFrame(tick); };
  requestAnimationFrame(tick);
}"""


def made_up(points: int) -> bytes:
    """Return an answer of `/v1/map`: ``points`` in a hundred loose clusters of 20 organs."""
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 100, points).astype(np.int32)
    centres = rng.uniform(-0.8, 0.8, (100, 2))
    places = (centres[cluster] + 0.08 * rng.normal(size=(points, 2))).astype(np.float32)
    table = pa.table(
        {
            "row": np.arange(points, dtype=np.uint32),
            "x": places[:, 0],
            "y": places[:, 1],
            "organ": (cluster % 20).astype(np.uint16),
            "device": (cluster % 7).astype(np.uint16),
            "cluster": cluster,
            "rank": rng.random(points, dtype=np.float32),
            "selected": (rng.random(points) < 0.07).astype(np.uint8),
            "pin": np.zeros(points, dtype=np.int8),
        }
    )
    organs, devices = (
        [f"{kind} {i}" for i in range(n)] for kind, n in (("organ", 20), ("device", 7))
    )
    metadata = {"organs": json.dumps(organs), "devices": json.dumps(devices)}
    table = table.replace_schema_metadata({**metadata, "coreset": "", "images": str(points)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@contextlib.contextmanager
def stand_in(url: str, points: int) -> Iterator[str]:
    """Yield the address of the service with ``points`` made-up points as its map."""
    body = made_up(points)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/v1/map"):
                return self.answer(200, "application/vnd.apache.arrow.stream", body)
            return self.forward()

        def forward(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            request = urllib.request.Request(
                url + self.path,
                self.rfile.read(size) or None,
                dict(self.headers),
                method=self.command,
            )
            try:
                with urllib.request.urlopen(request) as found:
                    self.answer(found.status, found.headers["Content-Type"], found.read())
            except urllib.error.HTTPError as refused:  # a made-up point's picture, for example
                self.answer(refused.code, refused.headers["Content-Type"], refused.read())

        def do_POST(self) -> None:
            self.forward()

        def answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def gaps_while(page: Any, action: Any, settle: float = 0.0) -> dict[str, float]:
    """Return the seconds an action took and the gaps between frames meanwhile, in milliseconds."""
    page.evaluate("() => { window.gaps.length = 0; }")
    start = time.perf_counter()
    action()
    seconds = time.perf_counter() - start
    page.wait_for_timeout(1000 * settle)
    gaps = page.evaluate("() => window.gaps.slice()") or [0.0]
    return {
        "seconds": round(seconds, 2),
        "frames": len(gaps),
        "median_ms": round(statistics.median(gaps), 1),
        "p95_ms": round(float(np.percentile(gaps, 95)), 1),
        "longest_ms": round(max(gaps), 1),
    }


def measure(url: str, token: str) -> dict[str, Any]:
    """Drive the map in a browser and return what each action took."""
    from playwright.sync_api import sync_playwright

    found: dict[str, Any] = {}
    browser_file = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(180_000)
        page.add_init_script(f"({FRAMES})()")
        start = time.perf_counter()
        page.goto(f"{url}/#token={token}")
        page.wait_for_selector(".plot[data-ready=true] canvas")
        page.wait_for_function("document.querySelector('.plot').canvasOfMap.lastFrame > 0")
        found["first_picture_s"] = round(time.perf_counter() - start, 2)
        page.wait_for_timeout(8000)  # until it has drawn what it draws at rest
        found["points"], found["drawn_at_rest"] = page.evaluate(
            "() => { const c = document.querySelector('.plot').canvasOfMap;"
            " return [c.points.count, c.drawn]; }"
        )
        box = page.locator(".plot").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def drag(steps: int, pause: float) -> None:
            page.mouse.move(x, y)
            page.mouse.down()
            for step in range(steps):
                page.mouse.move(x + 120 * np.sin(step / 6), y + 80 * np.cos(step / 6))
                time.sleep(pause)
            page.mouse.up()

        def hover() -> None:
            for step in range(40):
                page.mouse.move(x + 200 * np.sin(step / 6), y + 150 * np.cos(step / 6))
                time.sleep(0.05)

        def zoom() -> None:
            for step in range(20):
                page.mouse.wheel(0, -100 if step < 10 else 100)
                time.sleep(0.05)

        def lasso() -> None:
            page.get_by_role("button", name="Lasso").click()
            page.mouse.move(x - 100, y - 100)
            page.mouse.down()
            for corner in ((100, -100), (100, 100), (-100, 100), (-100, -100)):
                page.mouse.move(x + corner[0], y + corner[1], steps=10)
            page.mouse.up()
            page.wait_for_selector(".caught strong")

        page.mouse.move(x, y)
        found["drag fast"] = gaps_while(page, lambda: drag(60, 0.016))
        found["drag slow"] = gaps_while(page, lambda: drag(20, 0.3))
        found["after it"] = gaps_while(page, lambda: None, settle=4)
        found["hover"] = gaps_while(page, hover)
        found["zoom"] = gaps_while(page, zoom)
        page.wait_for_timeout(3000)
        found["lasso"] = gaps_while(page, lasso)
        browser.close()
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--points", type=int)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {"machine": describe_machine()}
    points = arguments.points
    with (
        stand_in(arguments.url, points) if points else contextlib.nullcontext(arguments.url) as url
    ):
        found |= measure(url, arguments.token)
    for name, value in found.items():
        print(f"{name:16} {value}")
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
