"""Tables, savings and the page of a sweep."""

import math
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from kdfm_ray import grid
from kdfm_ray.config import Config, DataConfig, TrainConfig
from kdfm_ray.sweeps.ledger import Record
from kdfm_ray.sweeps.page import write_page
from kdfm_ray.sweeps.results import spread, summarize, trial_rows, write_tables
from kdfm_ray.sweeps.savings import describe, savings
from kdfm_ray.sweeps.space import make_sweep, make_trials

BASE = Config(
    recipe="paper",
    data=DataConfig(name="digits", num_labels=100),
    train=TrainConfig(steps=100, eval_every=50),
)
SWEEP = make_sweep(
    name="s",
    base=BASE,
    seeds=(0, 1),
    space={"select.tau_select": grid(0.5, 0.8), "inner.tau_inner": grid(0.8, 0.95)},
)
TRIALS = make_trials(SWEEP, SWEEP.settings())


def records():
    """Settings 0 and 1 finished, of 2 one seed stopped, of 3 one failed and one waits."""
    found = {}
    for number, trial in enumerate(TRIALS):
        networks = {"outer": f"outer-of-seed-{trial.seed}"}
        accuracy = 0.5 + 0.01 * number
        row = {"val_accuracy": accuracy, "test_accuracy": accuracy - 0.1, "inner_seconds": 20.0}
        row |= {"outer_test_accuracy": 0.4, "trusted_size": 10, "trusted_precision": 0.9}
        curve = {50: accuracy - 0.1, 100: accuracy}
        found[trial.id] = Record("finished", curve, 30.0, row, networks=networks)
    names = [trial.id for trial in TRIALS]
    found[names[5]] = Record("stopped", {50: 0.9}, 10.0, networks={"outer": "outer-of-seed-1"})
    found[names[6]] = Record("failed", why="no <b>image</b> is trusted")
    found[names[7]] = Record()
    return found


def test_spread_against_a_table_of_students_t():
    found = spread([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.sd == 1.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
    assert spread([1.0]).sd is None


def test_means_are_of_settings_finished_on_all_their_seeds_alone():
    settings = summarize(trial_rows(TRIALS, records()), SWEEP.fields)
    assert [setting.number for setting in settings] == [1, 0, 2, 3]  # best first, others after
    assert [setting.complete for setting in settings] == [True, True, False, False]
    best = settings[0]
    assert best.values == {"select.tau_select": 0.8, "inner.tau_inner": 0.8}
    assert best.figures["val_accuracy"].mean == pytest.approx((0.52 + 0.53) / 2)
    assert best.figures["test_accuracy"].mean == pytest.approx((0.42 + 0.43) / 2)
    assert settings[2].statuses == {0: "finished", 1: "stopped"}
    assert best.figures["behind"].mean == 0
    behind = settings[1].figures["behind"]  # 0.02 on either seed, though the seeds differ by 0.01
    assert (behind.mean, behind.sd) == (pytest.approx(0.02), pytest.approx(0, abs=1e-9))
    assert best.figures["gain"].mean == pytest.approx((0.02 + 0.03) / 2)


def test_a_row_for_each_trial_in_parquet_and_csv(tmp_path):
    rows = trial_rows(TRIALS, records())
    write_tables(tmp_path, rows, summarize(rows, SWEEP.fields))
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert len(table) == len(TRIALS)
    first, stopped, failed = table[0], table[5], table[6]
    wanted = {"trial_id", "status", "seed", "val_accuracy", "test_accuracy", "outer_key", "seconds"}
    assert wanted | {"select.tau_select", "inner.tau_inner"} <= set(first)
    assert (first["status"], first["test_accuracy"]) == ("finished", pytest.approx(0.4))
    assert (stopped["val_accuracy"], stopped["test_accuracy"], stopped["step"]) == (0.9, None, 50)
    assert (failed["status"], failed["val_accuracy"]) == ("failed", None)
    assert (tmp_path / "trials.csv").read_text().count("\n") == len(TRIALS) + 1
    assert (tmp_path / "settings.csv").read_text().count("\n") == 4 + 1
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_values_of_several_kinds_make_one_column(tmp_path):
    space = {"data.num_val": grid(None, 100)}
    sweep = make_sweep(name="s", base=BASE, seeds=(0,), space=space)
    rows = trial_rows(trials := make_trials(sweep, sweep.settings()), {})
    rows[0]["data.num_val"] = "auto"
    write_tables(tmp_path, rows, summarize(rows, sweep.fields))
    column = pq.read_table(tmp_path / "trials.parquet")["data.num_val"].to_pylist()
    assert column == ["auto", "100"]
    assert len(trials) == 2


def test_savings_are_counted_in_updates():
    seconds = {"outer-of-seed-0": 10.0, "outer-of-seed-1": 12.0}
    found = savings(TRIALS, records(), seconds)
    # Trials 0-5 have ended, three of each seed; number 5 after 50 of 100 updates.
    assert found.done == 2 * 100 + 5 * 100 + 50
    assert found.shared == 4 * 100
    assert found.stopped == 50
    assert found.full == 6 * 200
    assert found.seconds_shared == 2 * 10 + 2 * 12
    assert found.seconds_stopped == pytest.approx(50 * 20 / 100)
    assert "400 updates (33%)" in describe(found)[1]
    assert describe(savings(TRIALS, {}, {})) == []


class Text(HTMLParser):
    """Tags that were opened, and whether they were closed."""

    VOID = ("meta", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("over", [True, False])
def test_the_page_shows_all_parts_and_escapes_what_trials_say(tmp_path, over):
    found = records()
    rows = trial_rows(TRIALS, found)
    settings = summarize(rows, SWEEP.fields)
    curves = {name: record.curve for name, record in found.items()}
    write_page(tmp_path, SWEEP, rows, settings, curves, ["saved a lot"], over=over)
    page = (tmp_path / "index.html").read_text()
    parsed = Text()
    parsed.feed(page)
    for part in ("Best settings", "Methods", "All trials", "Learning curves", "Failed trials"):
        assert part in parsed.text
    assert page.count("<svg") == 3
    assert "no <b>image</b> is trusted" in parsed.text  # as text, not as a tag
    assert "http-equiv" in page or over
    assert ("http-equiv" in page) != over
    assert "<script" not in page
    assert "src=" not in page.replace("xlink:href", "")


def test_two_thresholds_have_a_heat_map(tmp_path):
    rows = trial_rows(TRIALS, records() | {t.id: records()[TRIALS[0].id] for t in TRIALS[4:]})
    write_page(tmp_path, SWEEP, rows, summarize(rows, SWEEP.fields), {}, [], over=True)
    assert "select.tau_select and inner.tau_inner" in (tmp_path / "index.html").read_text()


def test_a_page_of_a_sweep_in_which_nothing_has_ended(tmp_path):
    rows = trial_rows(TRIALS, {})
    write_page(tmp_path, SWEEP, rows, summarize(rows, SWEEP.fields), {}, [], over=False)
    assert "8 waiting" in (tmp_path / "index.html").read_text()


def test_a_page_without_validation_and_with_one_seed(tmp_path):
    sweep = SWEEP.changed(seeds=(0,))
    trials = make_trials(sweep, sweep.settings())
    found = {
        t.id: Record("finished", row={"test_accuracy": 0.5 + n / 10}) for n, t in enumerate(trials)
    }
    rows = trial_rows(trials, found)
    settings = summarize(rows, sweep.fields)
    assert settings[0].number == 3  # by test accuracy where there is no other
    write_page(tmp_path, sweep, rows, settings, {}, [], over=True)


def test_an_accuracy_is_a_plain_number_for_parquet(tmp_path):
    found = records()
    found[TRIALS[0].id].row["val_accuracy"] = np.float64(0.5)
    rows = trial_rows(TRIALS, found)
    write_tables(tmp_path, rows, summarize(rows, SWEEP.fields))
    assert pq.read_table(tmp_path / "trials.parquet")["val_accuracy"][0].as_py() == 0.5
