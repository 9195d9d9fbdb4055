"""The page of a run: whatever is missing, it is drawn; nothing in it leads anywhere."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from kdfm_ray.report import page as page_module
from kdfm_ray.report.charts import Dots, Line, dot_map, line_chart, matrix_chart, text_width, ticks
from kdfm_ray.report.page import report_page, write_report_page

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in its place; keeps words and links."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        self.words.append(data)


def read(document):
    parser = Balanced()
    parser.feed(document)
    assert parser.open == []
    assert all(link.startswith("data:image/png;base64,") for link in parser.links)
    assert not re.search(r"https?://|@import|url\(|<script", document)
    for svg in re.findall(r"<svg.*?</svg>", document):
        ET.fromstring(svg)
        assert not re.search(r'[" ,]nan\b', svg)
    return " ".join(parser.words)


@pytest.mark.parametrize("classes", [2, 10, 100, 150])
def test_a_whole_page(made, classes):
    given = made(classes)
    words = read(report_page(given.report, given.lines, given.pictures))
    for expected in (
        "Worth it: KD-FixMatch is",
        "Something <odd> happened",
        "Validation accuracy",
        "mask rate",
        "Trusted labels overridden",
        "and their cluster agrees: trusted",
        "Reliability",
        "Most frequent mistakes",
        "Map of the images",
        "Rejected: not confident enough",
        "5 of 100 trusted labels",
        "images/s",
        "Files skipped: 1",
        "kdfm train",
        "--data.name",
        "class <1> & more",
    ):
        assert expected in words, expected
    assert ("Confusion matrix" in words) == (classes <= 128)


def test_confidence_before_and_after_calibration(made):
    report = made(3).report
    own = report["scores"]["inner"]
    own["reliability"]["ece"], own["calibrated"]["reliability"]["ece"] = 0.123, 0.045
    words = read(report_page(report, []))
    before, after = words.index("Reliability before"), words.index("Reliability after")
    assert "Expected calibration error 12.3 points" in words[before:after]
    assert "Expected calibration error 4.5 points" in words[after:]
    told = f"by {own['calibrated']['temperature']:.3f}, fitted to 600 validation images"
    assert told in words[after:]
    assert "(these)" not in words
    assert "validation images (these)" in read(report_page(report | {"scored_on": "val"}, []))
    del own["calibrated"]
    words = read(report_page(report, []))
    assert "Without validation images kdfm predict and exported files give the same" in words
    assert "after calibration" not in words


def test_duplicates_are_a_table_that_people_read(made):
    document = report_page(made(2).report, [])
    words = read(document)
    assert "Duplicates: 2" in words
    assert "1,234 more copies are among the unlabeled images alone" in words
    (listed,) = re.findall(r"what was done</th>.*?</table>", document)
    first, second = re.findall(r"<tr>(<td>.*?)</tr>", listed)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in (first, second)]
    assert cells[0] == [
        "pets/&lt;cat&gt;/a.png<br>test/cat/a.png",
        "1 labeled, 1 test",
        "c0",
        "left out of training",
    ]
    assert cells[1][0].endswith("spare/9.png<br>and 1,192 more")
    assert cells[1][1:] == [
        "2 labeled, 1,200 unlabeled",
        "c0, class &lt;1&gt; &amp; more",
        "kept once, unlabeled",
    ]
    assert "{" not in "".join(map("".join, cells))


@pytest.mark.parametrize(
    "poorer",
    [
        {"truth": False},
        {"baseline": False},
        {"test": False},
        {"clusterer": "none"},
        {"truth": False, "baseline": False, "test": False, "clusterer": "none"},
    ],
)
def test_a_poorer_run_has_its_page(made, poorer):
    given = made(5, **poorer)
    words = read(report_page(given.report, given.lines, given.pictures))
    assert ("labeled-only" in words) == poorer.get("baseline", True)
    assert ("Labels used that are right" in words) == poorer.get("truth", True)
    assert ("Nobody knows their true classes" in words) != poorer.get("truth", True)
    assert ("There is no test set" in words) != poorer.get("test", True)
    assert ("no clusters were asked" in words) == (poorer.get("clusterer") == "none")


@pytest.mark.parametrize("clusterer", ["none", "dec"])
@pytest.mark.parametrize("tau", [0.0, 0.8])
def test_the_way_to_the_trusted_images_has_the_steps_that_were_asked_for(made, clusterer, tau):
    given = made(5, clusterer=clusterer)
    filters = given.report["selection"]["filters"]
    quota = {"filters": filters | {"before_quota": filters["agreement"]}, "tau_select": tau}
    report = given.report | {"selection": given.report["selection"] | quota}
    words = read(report_page(report, given.lines, given.pictures))
    assert "of these the most confident: trusted" in words
    assert ("confident (at least" in words) == (tau > 0)
    assert ("and their cluster agrees" in words) == (clusterer == "dec")
    assert "no clusters were asked" not in words


def test_a_run_that_ended_early_says_why_and_shows_what_there_is(made):
    given = made(3)
    report = given.report | {
        "test_accuracy": {"outer": None},
        "val_accuracy": {"outer": 0.5},
        "scored_on": None,
        "scores": {},
        "compared": {},
        "selection": None,
        "overridden": None,
        "stages": {"data": 1.0, "outer": 2.0},
    }
    from kdfm_ray.report.verdict import verdict

    report["verdict"] = verdict(report)
    begun = [line for line in given.lines if line["stage"] == "outer"]
    report |= {"finished": False, "failed": "the disk is <full>"}
    words = read(report_page(report, begun))
    assert "This run ended early." in words
    assert "the disk is <full>" in words
    assert "No verdict yet" in words
    assert "Validation accuracy" in words
    assert "Map of the images" not in words
    read(report_page(report | {"failed": "at once"}, []))


def test_a_page_that_cannot_be_drawn_is_one_sentence(made, tmp_path, monkeypatch):
    given = made(2)
    assert write_report_page(tmp_path, given.report, None) is None
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")

    def broken(*_):
        raise ZeroDivisionError("of course")

    monkeypatch.setattr(page_module, "report_page", broken)
    trouble = write_report_page(tmp_path, given.report, None)
    assert trouble == "report.html was not written: ZeroDivisionError: of course"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 60, [0, 20, 40, 60]), (0.83, 0.83001, None)],
)
def test_ticks_hold_the_values(low, high, expected):
    found = ticks(low, high)
    assert found[0] <= low + 1e-9
    assert found[-1] >= high - 1e-9
    assert len(found) <= 8
    if expected is not None:
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("points", [[(1, 0.5)], [(1, 0.0), (2, 0.0)], [(5, 3e-9), (9, 1e6)]])
def test_lines_of_any_values_are_drawn_inside_the_picture(points):
    chart = line_chart([Line("only", points)], label="x")
    root = ET.fromstring(chart)
    line = root.find("polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert np.isfinite(places).all()
    assert all(0 <= x <= 360 and 0 <= y <= 230 for x, y in places)


def test_labels_of_a_map_do_not_lie_on_each_other_and_stay_inside():
    at = {"here": (0.5, 0.5), "here too": (0.52, 0.5), "mimetypes": (0.0, 0.9), "last": (0.5, 0.4)}
    groups = [Dots(name, [place], "#000", label=True) for name, place in at.items()]
    root = ET.fromstring(dot_map(groups, label="x"))
    labels = {label.text: float(label.attrib["x"]) for label in root.findall("text")}
    assert list(labels) == ["here", "mimetypes", "last"]
    assert labels["mimetypes"] - text_width("mimetypes") / 2 >= 0
    assert len(root.findall("path")) == 4


def test_the_longest_name_has_room_beside_the_matrix():
    root = ET.fromstring(matrix_chart([[1, 0], [0, 1]], ["mmmmmmmm", "b"], label="x"))
    end = next(float(t.attrib["x"]) for t in root.findall("text") if t.text == "mmmmmmmm")
    assert end >= 8 * 10.7  # DejaVu Sans at 11 pixels; others are narrower


def test_time_of_reused_stages_is_told_apart(made):
    report = made(3).report
    words = read(report_page(report | {"reused": []}, []))
    assert "This run took" not in words
    stages = {"data": 5.0, "outer": 100.0, "inner": 20.0}
    told = report | {"stages": stages, "reused": ["data", "outer"], "total_seconds": 25.0}
    words = read(report_page(told, []))
    assert "This run took 25 s; with the stages that were reused" in words
    assert ", 2.2 min, by" in words


def test_a_flag_keeps_its_short_value_on_its_line(made):
    command = f"kdfm train --data.seed 3 --out {'x' * 40} --flag --other"
    found = report_page(made(3).report | {"command": command}, [])
    assert re.findall(r"<span>(--.*?)</span>", found) == [
        "--data.seed 3",
        "--out",
        "--flag",
        "--other",
    ]
