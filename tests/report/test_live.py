"""The live view: bars on a terminal, lines elsewhere, and never an exception."""

import io
import re

from rich.console import Console

from kdfm_ray.report import live
from kdfm_ray.report.live import LiveView

EVENTS = [
    {"stage": "data", "state": "start"},
    {
        "stage": "data",
        "state": "done",
        "num_labeled": 100,
        "num_unlabeled": 1295,
        "num_val": 143,
        "num_test": None,
        "numerics": {
            "choice": "bf16 channels_last",
            "how": "measured",
            "measured": [
                {"numerics": "bf16 channels_last", "seconds": 0.25},
                {"numerics": "fp32 contiguous", "seconds": 1.5},
            ],
        },
    },
    {"stage": "baseline", "state": "reused"},
    {"stage": "outer", "state": "start"},
    {"stage": "outer", "step": 2, "total": 10, "val_accuracy": 0.5},
    {"stage": "outer", "step": 5, "total": 10, "loss": 1.25, "mask_rate": 0.5},
    {"stage": "outer", "step": 10, "total": 10, "val_accuracy": 0.875},
    {"stage": "outer", "state": "done"},
    {"stage": "label", "state": "start"},
    {"stage": "label", "advance": 700, "total": 1295},
    {"stage": "label", "advance": 595, "total": 1295},
    {"stage": "label", "state": "done"},
    {"stage": "label", "advance": 1, "total": 1295},  # an event that was late
    {"stage": "nonsense", "step": 3},
]


def show(terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=140)
    with LiveView(console) as view:
        for event in EVENTS:
            view(event)
    return output.getvalue()


def test_lines_where_there_is_no_terminal():
    lines = re.sub(r"after \d\.\d s", "after 0.1 s", show(terminal=False)).splitlines()
    assert lines == [
        "data and split: begins",
        "data and split: done after 0.1 s  100 labeled  1,295 unlabeled  143 validation  no test",
        "precision and layout: bf16 channels_last (measured; an update: bf16 channels_last "
        "0.250 s, fp32 contiguous 1.500 s)",
        "labeled-only network: done before, reused from the store",
        "FixMatch (outer) network: begins",
        "FixMatch (outer) network: done after 0.1 s  validation 87.5%  loss 1.250  mask 50%",
        "pseudo labels: begins",
        "pseudo labels: done after 0.1 s",
    ]


def test_a_network_is_done_when_it_is_trained_though_its_job_goes_on():
    output = io.StringIO()
    with LiveView(Console(file=output, force_terminal=False, width=140)) as view:
        for stage in ("baseline", "outer"):
            view({"stage": stage, "state": "start"})
            view({"stage": stage, "state": "trained"})
        view({"stage": "baseline", "step": 10, "total": 10})  # late
        for stage in ("baseline", "outer"):
            view({"stage": stage, "state": "done"})
    lines = [line.partition(" after")[0] for line in output.getvalue().splitlines()]
    assert lines == [
        "labeled-only network: begins",
        "labeled-only network: done",
        "FixMatch (outer) network: begins",
        "FixMatch (outer) network: done",
    ]


def test_a_compiler_that_failed_is_told():
    how = {"choice": "bf16 contiguous", "how": "measured", "compile_error": "no compiler found"}
    assert live._numerics(how) == (
        "precision and layout: bf16 contiguous (measured; torch.compile fails here: no compiler "
        "found)"
    )


def test_a_line_at_intervals(monkeypatch):
    monkeypatch.setattr(live, "LINE_SECONDS", 0.0)
    shown = show(terminal=False)
    assert "FixMatch (outer) network: 2/10  validation 50.0%\n" in shown, "no time to tell yet"
    numbers = "validation 50.0%  loss 1.250  mask 50%"
    assert re.search(rf"network: 5/10  {numbers}  about \S+ s left\n", shown)
    assert "FixMatch (outer) network: 10/10  validation 87.5%  loss 1.250  mask 50%\n" in shown


def test_time_left_is_of_the_pace_since_the_stage_went_on(monkeypatch):
    """What an earlier try did took no time of this one."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(live, "LINE_SECONDS", 0.0)

    def shown(terminal):
        output = io.StringIO()
        with LiveView(Console(file=output, force_terminal=terminal, width=140)) as view:
            view({"stage": "outer", "resumed": 500, "total": 1000})
            for step, seconds in ((510, 30.0), (520, 20.0), (600, 160.0)):
                now[0] += seconds
                view({"stage": "outer", "step": step, "total": 1000, "loss": 1.0})
        return output.getvalue()

    assert "about 13.3 min left" in shown(terminal=True)
    lines = shown(terminal=False).splitlines()
    assert lines[-3:] == [
        "FixMatch (outer) network: 510/1000  loss 1.000",
        "FixMatch (outer) network: 520/1000  loss 1.000  about 16.0 min left",
        "FixMatch (outer) network: 600/1000  loss 1.000  about 13.3 min left",
    ]


def test_bars_on_a_terminal():
    text = show(terminal=True)
    assert "FixMatch (outer) network" in text
    assert "10/10" in text
    assert "validation 87.5%  loss 1.250  mask 50%" in re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "1295/1295" in text


def test_texts_from_elsewhere_are_no_markup_and_warnings_come_once():
    """Ray's errors and class names may have brackets."""
    for terminal in (True, False):
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, width=200, highlight=False)
        with LiveView(console) as view:
            view({"note": "lost [/gloo/pair.cc:561] peer"})
            view({"stage": "outer", "resumed": 40, "total": 100})
            for _ in range(2):
                view({"stage": "label", "warning": "all are [/red]"})
            view({"stage": "inner", "waiting": "another run [x] computes"})
        text = output.getvalue()
        assert "lost [/gloo/pair.cc:561] peer" in text
        assert "going on after update 40" in text
        assert text.count("all are [/red]") == 1
        assert "another run [x] computes" in text
