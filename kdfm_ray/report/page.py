"""``report.html``: a run on one page that needs nothing but a browser, and prints."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdfm_ray.report.charts import Line, bar, figure, line_chart, matrix_chart, reliability_chart
from kdfm_ray.report.data import SHOWN
from kdfm_ray.report.examples import examples_section, map_section
from kdfm_ray.report.html import BLUE, GRAY, GREEN, ORANGE, page, table, text
from kdfm_ray.report.live import TITLES
from kdfm_ray.report.run_folder import read_lines, write_whole
from kdfm_ray.report.table import ROWS, percent
from kdfm_ray.report.verdict import ON, duration, updates
from kdfm_ray.store import Artifact

PAGE = "report.html"
LOOKS = {"inner": 0, "outer": 1, "baseline": 2, "longer": 3}
MARKS = {"yes": "✓", "no": "✗", "unclear": "≈", "unknown": "?"}
TONES = {"yes": GREEN, "no": ORANGE, "unclear": BLUE, "unknown": GRAY}
MOST_LISTED = 50  # skipped files, duplicates
STYLE = """
body { margin: 1em auto; } h1 { margin: .2em 0; } h3 { font-size: 1em; margin: 1em 0 .3em; }
figure h3 { margin-top: 0; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figcaption { color: #555; font-size: 13px; }
.charts { display: grid; gap: 1.5em 2em;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.charts .wide { grid-column: 1 / -1; max-width: 620px; }
.charts svg:not(.mark) { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: #333; } svg .e { text-anchor: end; }
svg .m { text-anchor: middle; } svg .s { font-size: 9px; } svg .dimmer { fill: #666; }
svg .b { font-weight: 700; } svg .halo { paint-order: stroke; stroke: #fff; stroke-width: 3px; }
svg text[fill="#fff"] { fill: #fff; } svg.mark { vertical-align: -2px; }
.verdict { border-left: 6px solid; padding: .3em 1em; margin: 1em 0; background: #f6f6f6; }
.verdict p { margin: .4em 0; } .verdict strong { font-size: 1.25em; }
.ended { border: 2px solid #222; padding: .3em 1em; }
.bar { display: inline-block; width: 80px; height: 10px; background: #eee; margin-right: .6em; }
.bar i { display: block; height: 100%; }
.charts td { white-space: normal; overflow-wrap: anywhere; }
.tall { max-height: 34em; overflow: auto; } .tall .scroll { overflow: visible; }
 .tall th { position: sticky; top: 0; background: #fff; }
.legend span { display: inline-block; margin-right: 1.2em; }
.examples { display: flex; flex-wrap: wrap; gap: .6em; } .examples figure { width: 92px; }
.examples img { width: 64px; height: 64px; image-rendering: pixelated; border: 1px solid #ccc; }
.examples figcaption { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .6em; }
pre span { white-space: nowrap; } .facts td { white-space: normal; overflow-wrap: anywhere; }
p, li { overflow-wrap: anywhere; }
@media (max-width: 600px) { .bar { width: 36px; } th, td { padding: .25em .4em; }
  td:first-child { white-space: normal; } .facts td:first-child { overflow-wrap: normal; }
  .examples figure { width: 76px; } }
@media print { body { font-size: 10pt; max-width: none; margin: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .bar { width: 40px; }
  .scroll, .tall { overflow: visible; max-height: none; } .tall th { position: static; }
  th, td { padding: .1em .4em; font-size: 8.5pt; } td { white-space: normal; }
  tr, .verdict, .examples figure { break-inside: avoid; } h2, h3, h2 + .dim { break-after: avoid; }
  .charts { grid-template-columns: 1fr 1fr; } @page { margin: 14mm; } }
"""


def write_report_page(
    folder: Path, report: Mapping[str, Any], pictures: Artifact | None
) -> str | None:
    """Write ``report.html`` whole, beside the ``metrics.jsonl`` that its curves are of.

    Args:
        folder: of the run.
        report: what ``make_report`` gave.
        pictures: their artifact, where there is one.

    Returns:
        What is wrong where it could not be written: a run is good without its page.
    """
    try:
        found = None
        if pictures is not None:
            with pictures.open("pictures.json") as file:
                found = json.load(file)
        whole = report_page(report, read_lines(folder), found)
        write_whole(folder / PAGE, whole)
    except Exception as error:  # of any kind: the numbers are in report.json
        return f"{PAGE} was not written: {type(error).__name__}: {error}"
    return None


def report_page(
    report: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Any] | None = None,
) -> str:
    """The page, as one document.

    Args:
        report: what ``make_report`` gave.
        lines: of ``metrics.jsonl``.
        pictures: the content of ``pictures.json``.
    """
    data = report["data"]
    title = data["name"]
    if data["labeled"] is not None:
        title += f", {data['labeled']:,} labels"
    classes = list(data["classes"] or [])
    ended = ""
    if not report.get("finished", True):
        why = text(str(report["failed"])).replace("\n", "<br>")
        ended = (
            f"<div class=ended><p><b>This run ended early.</b> {why}</p><p>Below is what was "
            "finished or measured until then; the same command goes on from there.</p></div>"
        )
    parts = [
        f"<p class=dim>KD-FixMatch report, {time.strftime('%Y-%m-%d %H:%M')}</p>",
        f"<h1>{text(title)}</h1>",
        ended,
        _verdict(report),
        _warnings(report["warnings"]),
        _training(lines),
        _trusted(report),
        _classes(report, classes, pictures),
        _mistakes(report, classes),
        map_section(pictures, classes),
        examples_section(pictures, classes),
        _cost(report),
        _data(data),
        _again(report),
    ]
    return page(title, parts, style=STYLE)


def _verdict(report: Mapping[str, Any]) -> str:
    found = report["verdict"]
    sentences = "".join(f"<p>{text(sentence)}</p>" for sentence in found["sentences"])
    worth = found["worth"]
    box = (
        f'<div class=verdict style="border-color:{TONES[worth]}"><p><strong>{MARKS[worth]} '
        f"{text(found['headline'])}</strong></p>{sentences}</div>"
    )
    rows = []
    for role, name in ROWS.items():
        if role in report["val_accuracy"]:
            test, val = report["test_accuracy"].get(role), report["val_accuracy"][role]
            done = updates(report, role)
            count = "-" if done is None else f"{done:,}"
            rows.append([text(name), count, percent(test), percent(val)])
    if not rows:
        return box
    heads = ["network", "updates", "test accuracy", "validation"]
    return box + table(heads, rows, numbers=(1, 2, 3))


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return "<h2>Warnings</h2><p>None.</p>"
    items = "".join(
        f"<li>{text(warning[:1].upper() + warning[1:].rstrip('.'))}.</li>" for warning in warnings
    )
    return f"<h2>Warnings</h2><ul>{items}</ul>"


def _training(lines: Sequence[Mapping[str, Any]]) -> str:
    charts = [
        _curve(lines, title, field, note, **how)
        for title, field, note, how in (
            (
                "Validation accuracy",
                "val_accuracy",
                "Of the averaged (EMA) network.",
                {"percent": True},
            ),
            (
                "Loss",
                "loss",
                "Labeled and weighted unlabeled loss together; the networks' unlabeled losses are "
                "of different targets.",
                {"from_zero": True},
            ),
            (
                "Images that give a loss (mask rate)",
                "mask_rate",
                "Unlabeled images whose label is used, as confident or as trusted.",
                {"percent": True, "from_zero": True},
            ),
            (
                "Labels used that are right",
                "pseudo_label_precision",
                "Where the truth of unlabeled images is known.",
                {"percent": True},
            ),
        )
    ]
    inner = [line for line in lines if line["stage"] == "inner"]
    charts += [
        _curve(
            inner,
            "Trusted labels in use",
            "trusted_rate",
            "Images trained with their trusted label, where the network's own does not count.",
            percent=True,
            from_zero=True,
        ),
        _curve(
            inner,
            "Trusted labels overridden",
            "override_rate",
            "The network was confident of another class than the trusted one.",
            percent=True,
            from_zero=True,
        ),
    ]
    shown = "".join(charts)
    return f"<h2>Training</h2><div class=charts>{shown}</div>" if shown else ""


def _curve(
    lines: Sequence[Mapping[str, Any]],
    title: str,
    field: str,
    note: str,
    *,
    percent: bool = False,
    from_zero: bool = False,
) -> str:
    curves = []
    for role in LOOKS:
        points = [
            (line["step"], line[field])
            for line in lines
            if line["stage"] == role and line.get(field) is not None
        ]
        if points:
            curves.append(Line(ROWS[SHOWN[role]], sorted(points), LOOKS[role]))
    if not curves:
        return ""
    chart = line_chart(curves, label=title, percent=percent, from_zero=from_zero)
    return figure(title, chart, text(note))


def _whose(relabeled: Mapping[str, Any] | None) -> str:
    """Whose labels they are, where they are not the network's own."""
    if relabeled is None:
        return ""
    graph = relabeled["source"] == "graph"
    proportion = relabeled["class_weights"] is not None
    parts = ["of the neighbor graph"] * graph + ["classes in proportion"] * proportion
    return f" ({', '.join(parts)})"


def _trusted(report: Mapping[str, Any]) -> str:
    selection = report["selection"]
    if selection is None:
        return ""
    steps = {
        "all": f"all pseudo labels{_whose(selection.get('relabeled'))}",
        "confidence": f"confident (at least {selection['tau_select']:g})"
        if "tau_select" in selection
        else "confident",
        "agreement": "and their cluster agrees: trusted",
    }
    if selection.get("tau_select") == 0:
        del steps["confidence"]  # lets all pass
    asked = selection.get("clusterer") != "none"
    if "before_quota" in selection["filters"]:
        if asked:
            steps["before_quota"] = "and their cluster agrees"
        del steps["agreement"]  # comes last
        steps["agreement"] = "of these the most confident: trusted"
    elif not asked:
        steps["agreement"] = "trusted (no clusters were asked)"
    rows = []
    for name, title in steps.items():
        found = selection["filters"][name]
        rows.append(
            [
                title,
                f"{bar(found['coverage'])}{percent(found['coverage'])}",
                f"{found['size']:,}",
                percent(found["precision"]),
            ]
        )
    known = selection["filters"]["all"]["precision"] is not None
    note = "" if known else " Nobody knows their true classes, so none is known to be right."
    return (
        "<h2>The trusted subset</h2><p class=dim>From all pseudo labels of the FixMatch network "
        f"to those that the second network begins with; labeled images count nowhere.{note}</p>"
        + table(["", "of all", "images", "precision"], rows, numbers=(2, 3))
        + _clusters(report)
    )


def _clusters(report: Mapping[str, Any]) -> str:
    selection = report["selection"]
    facts = []
    if selection.get("clusterer", "none") != "none":
        agreement = selection["agreement"]["end"]
        facts.append(
            f"Clusterer {selection['clusterer']}: matched with classes, the clusters agree with "
            f"{percent(agreement)} of the labels (normalized mutual information "
            f"{selection['nmi']:.2f})."
        )
        if selection["fallback"]:
            facts.append("Its k-means start was used in its place.")
    override = report.get("overridden")
    if override:
        facts.append(
            f"At its end the second network is confident of another class for "
            f"{override['count']:,} of {override['looked_at']:,} trusted labels that were looked at"
            + (
                f"; there the trusted label is right in {percent(override['trusted_right'])}, its "
                f"own in {percent(override['own_right'])}."
                if override["own_right"] is not None
                else "."
            )
        )
    return "".join(f"<p>{text(fact)}</p>" for fact in facts)


def _classes(
    report: Mapping[str, Any], classes: Sequence[str], pictures: Mapping[str, Any] | None
) -> str:
    scores = {role: found for role, found in report["scores"].items() if found}
    selection = report["selection"]
    per_class = (selection or {}).get("filters", {}).get("agreement", {}).get("per_class")
    labeled = (pictures or {}).get("labeled_per_class")
    if not scores and not per_class:
        return ""
    shown = [role for role in reversed(ROWS) if role in scores]
    head, numbers = ["class"], []
    head += ["labels"] if labeled else []
    head += [f"{ON[report['scored_on']]} images"] if shown else []
    numbers = list(range(1, len(head)))
    head += [f"recall, {ROWS[role]}" for role in shown]
    first = len(numbers) + 1
    numbers += list(range(first + 1, len(head)))
    if per_class:
        numbers += [len(head), len(head) + 1]
        head += ["trusted", "their precision"]
    rows = []
    for k, name in enumerate(classes):
        row = [text(name)]
        row += [f"{labeled[k]:,}"] if labeled else []
        row += [f"{scores[shown[0]]['images'][k]:,}"] if shown else []
        for number, role in enumerate(shown):
            recall = scores[role]["recall"][k]
            drawn = bar(recall) if number == 0 and recall is not None else ""
            row.append(f"{drawn}{percent(recall)}")
        if per_class:
            row += [f"{per_class['size'][k]:,}", percent(per_class["precision"][k])]
        rows.append(row)
    return (
        "<h2>Classes</h2><p class=dim>Recall: the share of a class's images that are found.</p>"
        f"<div class=tall>{table(head, rows, numbers=numbers)}</div>"
    )


def _mistakes(report: Mapping[str, Any], classes: Sequence[str]) -> str:
    role = next((role for role in reversed(ROWS) if report["scores"].get(role)), None)
    if role is None:
        return ""
    score, on = report["scores"][role], ON[report["scored_on"]]
    charts = []
    if score["confusion"] is not None:
        note = "Rows: true class; columns: predicted. Darker: a larger share of the row."
        label = f"Confusion matrix of {len(classes)} classes; its largest entries stand beside it."
        charts.append(
            figure(
                "Confusion matrix",
                matrix_chart(score["confusion"], classes, label=label),
                note,
                wide=len(classes) > 12,
            )
        )
    charts += _reliability(score, own=report["scored_on"] == "val")
    pairs = [
        [text(classes[true]), text(classes[predicted]), f"{count:,}"]
        for true, predicted, count in score["confused"][:10]
    ]
    if pairs:
        listed = table(["is", "is taken for", "times"], pairs, numbers=(2,))
        charts.append(figure("Most frequent mistakes", listed))
    return (
        f"<h2>Mistakes</h2><p class=dim>{ROWS[role]}, {score['count']:,} {on} images.</p>"
        f"<div class=charts>{''.join(charts)}</div>"
    )


def _reliability(score: Mapping[str, Any], *, own: bool) -> list[str]:
    """Confidence as the network gives it, and as ``kdfm predict`` does; see ``score``.

    Args:
        score: of the network.
        own: the temperature was fitted to the images that are shown.
    """
    after = score.get("calibrated")
    raw = (
        "Share of right predictions by confidence, as the network gives it, with the number of "
        "images. Bars below the dashed line: surer than it should be; above: less sure."
    )
    if after is None:
        note = f"{raw} Without validation images kdfm predict and exported files give the same."
        return [_reliability_figure("Reliability", score["reliability"], note)]
    note = (
        f"The same after division of the logits by {after['temperature']:.3f}, fitted to "
        f"{after['images']:,} validation images{' (these)' if own else ''}: as kdfm predict and "
        "exported files give it."
    )
    return [
        _reliability_figure("Reliability before calibration", score["reliability"], raw),
        _reliability_figure("Reliability after calibration", after["reliability"], note),
    ]


def _reliability_figure(title: str, found: Mapping[str, Any], note: str) -> str:
    error = f"{_points(found['ece'])} points"
    label = f"{title}: accuracy by confidence; calibration error {error}."
    chart = reliability_chart(found["confidence"], found["accuracy"], found["count"], label=label)
    return figure(title, chart, f"{note} Expected calibration error {error}.")


def _cost(report: Mapping[str, Any]) -> str:
    rows = []
    for stage, seconds in report["stages"].items():
        speed = report["images_per_second"].get(stage)
        rows.append(
            [
                text(TITLES[stage]),
                duration(seconds),
                f"{speed:,.0f}" if speed else "-",
                "reused from an earlier run" if stage in report["reused"] else "",
            ]
        )
    hardware, resources = report["hardware"], report["resources"]
    gpus = ", ".join(hardware["gpus"]) or "no GPU"
    workers = resources.get("workers")
    plural = "" if workers == 1 else "s"
    used = f"{workers} training worker{plural}" if workers else "one process"
    numerics = report["numerics"].get("choice")
    return (
        f"<h2>Cost</h2><p>{_in_all(report)}, by {used} on "
        f"{text(hardware['cpu'])} ({hardware['cores']} cores, {hardware['memory_gb']} GB), "
        f"{text(gpus)}{f', {text(numerics)}' if numerics else ''}.</p>"
        + table(["stage", "time", "images/s", ""], rows, numbers=(1, 2))
        + "<p class=dim>Images of a network: labeled ones and both views of unlabeled ones, over "
        "its whole time.</p>"
    )


def _in_all(report: Mapping[str, Any]) -> str:
    """How long the run took, and how long with what it took over from earlier ones."""
    seconds = report["total_seconds"]
    reused = sum(report["stages"].get(stage, 0.0) for stage in report["reused"])
    if not reused:
        return f"In all {duration(seconds)}"
    return (
        f"This run took {duration(seconds)}; with the stages that were reused, which an earlier "
        f"run did, {duration(seconds + reused)}"
    )


def _data(data: Mapping[str, Any]) -> str:
    shape = data["image_shape"]
    if data["labeled"] is None:
        files = data.get("files")
        counts = "The images were not divided" + (f"; {files:,} files were found" if files else "")
    else:
        counts = (
            f"{data['labeled']:,} labeled images; {data['unlabeled'] or 0:,} to learn from "
            f"without a label, the labeled ones among them; {data['val'] or 0:,} for validation; "
            + (f"{data['test']:,} for the test" if data["test"] else "no test set")
        )
    parts = [f"<h2>Data</h2><p>{counts}."]
    if shape and data["classes"]:
        parts.append(f" {len(data['classes'])} classes, {' x '.join(map(str, shape))} pixels.")
    parts.append("</p>")
    skipped = data.get("skipped") or []
    if skipped:
        rows = [[text(each["path"]), text(each["reason"])] for each in skipped[:MOST_LISTED]]
        listed = table(["file", "why"], rows)
        parts.append(f"<h3>Files skipped: {len(skipped):,}</h3><div class=tall>{listed}</div>")
    duplicates = data.get("duplicates") or []
    if duplicates:
        rows = [_duplicate(each) for each in duplicates[:MOST_LISTED]]
        listed = table(["the same picture", "copies", "class", "what was done"], rows)
        parts.append(f"<h3>Duplicates: {len(duplicates):,}</h3><div class=tall>{listed}</div>")
    if alone := (data.get("duplicate_counts") or {}).get("unlabeled_copies"):
        parts.append(
            f"<p>{alone:,} more copies are among the unlabeled images alone, and stay.</p>"
        )
    if max(len(skipped), len(duplicates)) > MOST_LISTED:
        parts.append("<p class=dim>The whole lists are in report.json.</p>")
    return "".join(parts)


def _duplicate(group: Mapping[str, Any]) -> list[str]:
    """A row of one picture: its files, how many in which set, its classes, what was done."""
    paths, sets = group["paths"], group["sets"]
    files = [text(path) for path in paths]
    if (more := sum(sets.values()) - len(paths)) > 0:
        files.append(f"and {more:,} more")
    copies = ", ".join(f"{number:,} {name}" for name, number in sets.items())
    return ["<br>".join(files), copies, text(", ".join(group["classes"])), text(group["done"])]


def _again(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    facts = {
        "seed": report["seed"],
        "split seed": report["split_seed"],
        "images and labels": report["data"].get("content_hash") or "-",
        "split": report["split_hash"],
        "config": report["config_hash"],
        "versions": versions,
        "system": report["hardware"]["system"],
    }
    rows = [[name, text(value)] for name, value in facts.items()]
    flag = r"(?<= )--[\w.-]+(?: (?!-)\S{1,24}(?= |$))?"  # with its value, where that is short
    command = re.sub(flag, r"<span>\g<0></span>", text(report["command"]))
    return (
        f"<h2>How to run it again</h2><pre>{command}</pre>"
        "<p>Stages that the store holds are not done again; with another --store all are. The "
        "numbers of this page are in report.json, those of its curves in metrics.jsonl, all "
        f"settings in config.yaml.</p><div class=facts>{table(['', ''], rows)}</div>"
    )


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
