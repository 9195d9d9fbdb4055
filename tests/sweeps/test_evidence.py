"""The tables in README and LOG are what the recorded cells say."""

from pathlib import Path

import pytest

from experiments import evidence, load_sweep
from kdfm_ray.sweeps.ledger import Cells, Record
from kdfm_ray.sweeps.space import make_trials

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"


def rows_of(printed):
    """Method, mean, seeds, difference of each printed row."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [tuple(row[:4]) for row in cells if row[0] != "method"]


RUN = [name for name in evidence.CASES if (RESULTS / f"{name}.jsonl").exists()]


@pytest.mark.parametrize("name", RUN)
def test_readme_and_log_have_the_figures_that_were_recorded(name, request, capsys):
    if name == "evidence_pretrained":
        request.getfixturevalue("lite0_weights")
    sweep, cases = load_sweep(name), evidence.CASES[name]
    readme = (ROOT / "README.md").read_text()
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for count in evidence.values_of(sweep):
        evidence.print_table(sweep, cases, count)
    rows = rows_of(capsys.readouterr().out)
    whole = [row for row in rows if row[2] == str(len(sweep.seeds))]
    assert whole, "no method has been run on all seeds"
    for _, mean, _, less in whole:
        for text in (readme, log):
            assert mean in text
            assert less in text


def test_the_table_takes_each_network_from_the_trial_that_trained_it(tmp_path, capsys):
    """Differences are of the same seed: 2 and 4 points, so 3 +- 12.71 by Student's t."""
    written = load_sweep("evidence")
    sweep = evidence.part_of(written, 100, (0, 1)).changed(results=tmp_path / "cells.jsonl")
    cells = Cells(sweep.results, {})
    case = evidence.CASES["evidence"][evidence.PAPER]
    for trial in make_trials(sweep, sweep.settings()):
        own = {name: trial.values[name] for name in case} == case
        row = {
            "labeled_only_test_accuracy": 0.5 if own else 0.0,
            "outer_test_accuracy": 0.6 if own else 0.1,
            "longer_test_accuracy": 0.7 + 0.1 * trial.seed if own else 0.2,
            "test_accuracy": (0.72 + 0.12 * trial.seed) if own else 0.3,
        }
        cells.add(trial, Record("finished", row=row, made=cells.made(trial)))
    evidence.print_table(sweep, evidence.CASES["evidence"], 100)
    rows = {name: found for name, *found in rows_of(capsys.readouterr().out)}
    assert rows["labeled-only"][0] == "50.00 ± 0.00"
    assert rows["FixMatch, 2 T updates"] == ["75.00 ± 7.07", "2", ""]
    assert rows[evidence.PAPER] == ["78.00 ± 8.49", "2", "+3.00 (-9.71 to +15.71)"]
    assert rows["KD-FixMatch, SCE"][0] == "30.00 ± 0.00"


def test_what_is_missing_is_said_by_number_of_labels(tmp_path, capsys):
    sweep = load_sweep("evidence").changed(results=tmp_path / "cells.jsonl")
    evidence.say_missing(sweep, [100])
    assert capsys.readouterr().out == (
        "100 labels: 0 of 20 cells recorded; seeds 0, 1, 2, 3, 4 are missing or incomplete\n"
    )


def test_a_recipe_that_the_sweep_does_not_have_is_named(monkeypatch):
    arguments = ["evidence.py", "--sweep", "evidence_pretrained", "--cases", "KD-FixMatch, SCE"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit, match=r"--cases KD-FixMatch, SCE: not in \['KD-FixMatch, CE'"):
        evidence.main()
