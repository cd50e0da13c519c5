"""A headless Chromium that visits pages of a folder and says what became of them."""

import json
import re
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0"),
)
CONSOLE = re.compile(r'^\[\d.*?:CONSOLE.*?\] (".*?), source: (\S+)', re.MULTILINE | re.DOTALL)
# Pages one after the other in a frame, which takes each width in turn.
DRIVER = """<!doctype html><meta charset="utf-8"><title>driver</title><script type="module">
const frame = document.body.appendChild(document.createElement("iframe"));
frame.style.cssText = "border:0;height:800px";
const found = {};
for (const page of PAGES) {
  await new Promise((loaded) => { frame.onload = loaded; frame.src = "/" + page; });
  const page_ = frame.contentDocument, images = [...page_.images];
  images.forEach((image) => { image.loading = "eager"; });
  await Promise.all(images.map((image) => image.decode().catch(() => {})));
  await page_.fonts.ready;
  const overflow = {}, root = page_.scrollingElement;
  const still = page_.head.appendChild(page_.createElement("style"));
  still.textContent = "* { transition: none !important; animation: none !important }";
  for (const width of WIDTHS) {
    frame.style.width = `${width}px`;
    overflow[width] = root.scrollWidth - root.clientWidth;
  }
  found[page] = {
    h1: [...page_.querySelectorAll("article h1")].map((x) => x.innerText),
    images: images.map((image) => [image.getAttribute("src"), image.naturalWidth]),
    formulas: page_.querySelectorAll("math").length,
    height: page_.querySelector("article").offsetHeight,
    overflow,
  };
}
await fetch("/done", { method: "POST", body: JSON.stringify(found) });
</script>"""


class Handler(SimpleHTTPRequestHandler):
    """Serves the folder and the driver, and takes what the driver found."""

    server: "Server"

    def do_GET(self) -> None:
        if self.path != "/driver":
            return super().do_GET()
        text = self.server.driver.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.found = json.loads(body)
        self.server.done.set()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def log_error(self, format: str, *args: Any) -> None:
        if "/favicon.ico" not in self.path:
            self.server.errors.append(f"{self.path}: {format % args}")


class Server(ThreadingHTTPServer):
    def __init__(self, folder: Path, driver: str) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.driver, self.done = driver, threading.Event()
        self.found: dict[str, Any] = {}
        self.errors: list[str] = []


def dom(address: str) -> str:
    """A page after its scripts have had 20 seconds of their own time."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}/profile"]
        command += ["--virtual-time-budget=20000", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout


def visit(folder: Path, pages: list[str], *widths: int) -> tuple[dict[str, Any], list[str]]:
    """What each page shows, its overflow by width in pixels, and all that went wrong meanwhile."""
    assert CHROMIUM is not None
    driver = DRIVER.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(widths))
    server = Server(folder, driver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile("w+") as log:
        address = f"http://127.0.0.1:{server.server_port}/driver"
        command = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}/profile"]
        command += ["--window-size=1400,900", "--remote-debugging-port=0", address]
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, text=True)
        try:
            done = server.done.wait(600)
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()
            server.server_close()
        log.seek(0)
        words = log.read()
    said = [f"{source}: {text}" for text, source in CONSOLE.findall(words)]
    assert done, f"the browser did not come to an end: {server.errors}\n{words[-2000:]}"
    return server.found, server.errors + said
