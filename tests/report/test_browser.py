"""The page in a real browser, where there is one: no errors, no requests, no sideways scrolling."""

import html
import json
import re
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
from PIL import Image

from kdfm_ray.report.page import report_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HEADLESS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-default-apps", "--disable-extensions"),
)
# The page in a frame, as chromium makes no window as narrow as a phone. What is wider than the
# frame shows in scrollWidth; tables scroll within a box of their own.
FRAME = """<!doctype html><html><body style="margin:0">
<iframe style="border:0;display:block" width="{width}" height="{height}" srcdoc="{document}">
</iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const drawn = [...page.images].every(image => image.complete && image.naturalWidth > 0);
  console.log("WIDTHS " + page.documentElement.scrollWidth + " " + drawn);
}}
</script></body></html>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]


def browse(folder, document, width, height):
    """Screenshot, lines of the console, and URLs that the page (not the browser) asked for."""
    folder.mkdir()
    framed = FRAME.format(width=width, height=height, document=html.escape(document))
    (folder / "report.html").write_text(framed)
    done = subprocess.run(
        [
            *(CHROMIUM, *HEADLESS, f"--user-data-dir={folder / 'profile'}"),
            *("--hide-scrollbars", "--enable-logging=stderr"),
            f"--log-net-log={folder / 'net.json'}",
            f"--screenshot={folder / 'page.png'}",
            f"--window-size={max(width, 500)},{height}",
            (folder / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    console = re.findall(r'CONSOLE.*?\] "(.*?)", source', done.stderr)
    log = json.loads((folder / "net.json").read_text())
    starts = (event.get("params", {}) for event in log["events"])
    asked = {
        each["url"] for each in starts if each.get("initiator", "not an origin") != "not an origin"
    }
    shot = Image.open(folder / "page.png").convert("RGB")
    return shot.crop((0, 0, width, height)), console, asked


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("classes", [10, 100])
def test_the_page_in_a_browser(made, tmp_path, width, classes):
    given = made(classes)
    given.report["data"]["skipped"].append({"path": "deep/" * 40 + "x.png", "reason": "odd"})
    given.report |= {"finished": False, "failed": "for " + "ever" * 60}
    document = report_page(given.report, given.lines, given.pictures)
    shot, console, asked = browse(tmp_path / "browser", document, width, 3000)
    assert len(console) == 1, console
    _, whole, images = console[0].split()
    assert int(whole) == width, "the page is wider than the window"
    assert images == "true", "not all images were drawn"
    assert asked == set()
    pixels = np.asarray(shot)
    assert (pixels.reshape(-1, 3).std(axis=0) > 5).all(), "the page is blank"
    assert json.dumps(given.report), "the report is fit for JSON"


def test_a_request_would_be_seen(tmp_path):
    page = '<html><body><img src="http://127.0.0.1:9/x.png"></body></html>'
    _, console, asked = browse(tmp_path / "browser", page, 500, 300)
    assert asked == {"http://127.0.0.1:9/x.png"}
    assert console == ["WIDTHS 500 false"]


def printed(folder, document):
    """The words of the page as it is printed, with single spaces."""
    pypdf = pytest.importorskip("pypdf")
    folder.mkdir()
    (folder / "report.html").write_text(document)
    subprocess.run(
        [
            *(CHROMIUM, *HEADLESS, f"--user-data-dir={folder / 'profile'}"),
            *("--no-pdf-header-footer", f"--print-to-pdf={folder / 'page.pdf'}"),
            (folder / "report.html").as_uri(),
        ],
        capture_output=True,
        timeout=200,
        check=True,
    )
    pages = pypdf.PdfReader(folder / "page.pdf").pages
    text = " ".join(page.extract_text() for page in pages)
    return " ".join(unicodedata.normalize("NFKC", text).split())  # "fi" may be one letter


def test_nothing_is_hidden_in_print(made, tmp_path):
    """All headings, and all rows of tables that scroll on a screen."""
    given = made(60)
    given.report["data"]["skipped"] = [
        {"path": f"odd/{number}.png", "reason": "empty"} for number in range(50)
    ]
    document = report_page(given.report, given.lines, given.pictures)
    words = printed(tmp_path / "browser", document)
    headings = [html.unescape(found) for found in re.findall(r"<h[1-3]>(.*?)</h[1-3]>", document)]
    assert len(headings) > 20
    assert [heading for heading in headings if heading not in words] == []
    assert [name for name in given.classes if name not in words] == []
    assert [k for k in range(50) if f"odd/{k}.png empty" not in words] == []
    assert given.report["command"] in words
