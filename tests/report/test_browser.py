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

from kdfm_ray import Asha, grid
from kdfm_ray.config import Config, DataConfig, TrainConfig
from kdfm_ray.report.page import report_page
from kdfm_ray.sweeps.ledger import Record
from kdfm_ray.sweeps.page import write_page
from kdfm_ray.sweeps.results import summarize, trial_rows
from kdfm_ray.sweeps.space import make_sweep, make_trials

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


def sweep_page(folder):
    """Of 24 settings and three seeds, of which some trials were stopped, and one failed."""
    base = Config(
        data=DataConfig(name="fashion_mnist", num_labels=100),
        train=TrainConfig(steps=400, eval_every=50),
    )
    space = {
        "select.tau_select": grid(0.5, 0.8, 0.95),
        "inner.tau_inner": grid(0.8, 0.95),
        "select.clusterer": grid("dec", "kmeans"),
        "inner.loss": grid("ce", "sce"),
    }
    sweep = make_sweep(name="made_up", base=base, space=space, seeds=(0, 1, 2), asha=Asha())
    trials, rng = make_trials(sweep, sweep.settings()), np.random.default_rng(0)
    records = {}
    for number, trial in enumerate(trials):
        end = 0.66 + 0.02 * trial.seed + rng.normal(scale=0.01)
        curve = {step: end - 0.3 * np.exp(-step / 100) for step in range(50, 401, 50)}
        row = {"val_accuracy": end, "test_accuracy": end - 0.01, "outer_test_accuracy": 0.65}
        row |= {"trusted_size": 30_000 + number, "trusted_precision": 0.85}
        records[trial.id] = Record("finished", curve, 60.0, row, networks={"outer": "o"})
        if number % 7 == 3:
            cut = {step: score for step, score in curve.items() if step <= 100}
            records[trial.id] = Record("stopped", cut, 20.0, networks={"outer": "o"})
    records[trials[-1].id] = Record("failed", why="no <b>image</b> is trusted: " + "/deep" * 60)
    rows = trial_rows(trials, records)
    curves = {name: record.curve for name, record in records.items()}
    saved = [
        "saved by sharing outer networks: 27,600 updates (40%), about 12.3 minutes of training"
    ]
    write_page(folder, sweep, rows, summarize(rows, sweep.fields), curves, saved, over=True)
    return (folder / "index.html").read_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_sweep_in_a_browser(tmp_path, width):
    document = sweep_page(tmp_path)
    shot, console, asked = browse(tmp_path / "browser", document, width, 5000)
    assert console == [f"WIDTHS {width} true"], "it is wider than the window, or does not load"
    assert asked == set()
    pixels = np.asarray(shot)
    assert (pixels.reshape(-1, 3).std(axis=0) > 5).all(), "the page is blank"


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
