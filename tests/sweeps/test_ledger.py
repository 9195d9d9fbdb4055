"""What is kept of trials survives whatever cuts it short."""

import dataclasses
import json

import pytest

from kdfm_ray import UserError, grid
from kdfm_ray.config import Config, DataConfig, content_hash
from kdfm_ray.sweeps.ledger import (
    TRIALS,
    Cells,
    Ledger,
    Record,
    append_line,
    give_cells,
    take_cells,
)
from kdfm_ray.sweeps.space import make_sweep, make_trials

NETWORKS = {"outer": "abc"}


def write_some(folder):
    ledger = Ledger(folder)
    ledger.start("a", NETWORKS, "i")
    ledger.validation("a", 10, 0.5, 3.0)
    ledger.validation("a", 20, 0.6, 5.0)
    ledger.end("a", "finished", row={"val_accuracy": 0.6, "test_accuracy": 0.55}, seconds=6.0)
    ledger.start("b", NETWORKS, "i")
    ledger.validation("b", 10, 0.4, 2.0)
    ledger.end("b", "stopped")
    ledger.start("c", NETWORKS, "i")
    ledger.validation("c", 10, 0.3, 4.0)
    return ledger


def test_it_is_read_back_and_what_ran_waits(tmp_path):
    write_some(tmp_path)
    assert Ledger(tmp_path).of("c").status == "running"  # for whoever only looks
    again = Ledger(tmp_path)
    again.begin()
    assert Ledger(tmp_path).of("c").status == "waiting"
    a, b, c = (again.of(name) for name in "abc")
    assert (a.status, a.curve, a.seconds) == ("finished", {10: 0.5, 20: 0.6}, 6.0)
    assert a.row["test_accuracy"] == 0.55
    assert a.networks == NETWORKS
    assert (b.status, b.val_accuracy, b.row) == ("stopped", 0.4, {})
    assert (c.status, c.curve) == ("waiting", {10: 0.3})


def test_failed_trials_are_tried_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.start("a", NETWORKS, "i")
    ledger.end("a", "failed", why="no room")
    assert ledger.of("a").status == "failed"
    again = Ledger(tmp_path)
    assert again.of("a").status == "failed"
    again.begin()
    assert (again.of("a").status, again.of("a").why) == ("waiting", "")


def test_seconds_of_all_tries_add_up(tmp_path):
    write_some(tmp_path)
    again = Ledger(tmp_path)
    again.begin()
    again.start("c", NETWORKS, "i")
    again.validation("c", 10, 0.3, 1.0)  # reported anew: goes on from a state before it
    again.validation("c", 20, 0.5, 2.5)
    again.end("c", "finished", row={}, seconds=3.0)
    assert again.of("c").seconds == 7.0
    assert Ledger(tmp_path).of("c").seconds == 7.0


def test_what_was_learned_from_other_images_is_forgotten(tmp_path):
    write_some(tmp_path)
    again = Ledger(tmp_path)
    again.begin()
    again.start("c", NETWORKS, "of other images")
    assert (again.of("c").curve, again.of("c").seconds) == ({}, 0.0)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_was_cut_short_costs_that_line_alone(tmp_path, cut):
    write_some(tmp_path)
    path = tmp_path / TRIALS
    path.write_bytes(path.read_bytes()[:-cut])
    ledger = Ledger(tmp_path)
    assert ledger.of("a").status == "finished"
    ledger.start("d", NETWORKS, "i")
    again = Ledger(tmp_path)
    assert "d" in again.records
    assert again.of("b").status == "stopped"


def trials_of(seeds=(0, 1), weights="no"):
    base = Config(data=DataConfig(name="digits", num_labels=100))
    space = {"inner.loss": grid("ce", "sce"), "model.pretrained": grid(weights)}
    sweep = make_sweep(name="s", base=base, seeds=seeds, space=space)
    return make_trials(sweep, sweep.settings())


def test_finished_cells_count_elsewhere_by_config_and_seed(tmp_path):
    trials, here, there = trials_of(), tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    ledger, cells = Ledger(here), Cells(tmp_path / "r" / "cells.jsonl", {"torch": "2"})
    cells.check()
    for trial in trials[:3]:
        ledger.start(trial.id, NETWORKS, "i")
        ledger.validation(trial.id, 10, 0.5, 1.0)
        facts = {"row": {"val_accuracy": 0.5}, "seconds": 2.0, "made": cells.made(trial)}
        ledger.end(trial.id, "finished", **facts)
        cells.add(trial, ledger.of(trial.id))
        cells.add(trial, ledger.of(trial.id))  # twice is once
    lines = (tmp_path / "r" / "cells.jsonl").read_text().splitlines()
    assert len(lines) == 3
    found = json.loads(lines[0])
    assert found["config_hash"] == trials[0].config.hash()
    assert found["seed"] == 0
    assert found["versions"] == {"torch": "2"}
    assert found["row"] == {"val_accuracy": 0.5}

    elsewhere = Ledger(there)
    assert take_cells(elsewhere, Cells(tmp_path / "r" / "cells.jsonl", {}), trials) == 3
    assert [elsewhere.of(t.id).status for t in trials] == ["finished"] * 3 + ["waiting"]
    assert elsewhere.of(trials[0].id).curve == {10: 0.5}
    assert elsewhere.of(trials[0].id).networks == NETWORKS
    assert elsewhere.of(trials[0].id).seconds == 2.0
    assert take_cells(elsewhere, Cells(tmp_path / "r" / "cells.jsonl", {}), trials) == 0


def test_cells_of_other_code_do_not_count(tmp_path, monkeypatch):
    from kdfm_ray import keys

    trials, path = trials_of(), tmp_path / "cells.jsonl"
    ledger, cells = Ledger(tmp_path), Cells(path, {})
    ledger.end(trials[0].id, "finished", row={}, made=cells.made(trials[0]))
    cells.add(trials[0], ledger.of(trials[0].id))
    assert Cells(path, {}).find(trials[0]) is not None
    monkeypatch.setitem(keys.VERSIONS, "inner", keys.VERSIONS["inner"] + 1)
    assert Cells(path, {}).find(trials[0]) is None


def test_cells_know_pretrained_weights_by_what_is_in_the_file(tmp_path):
    """So they count where the same file lies elsewhere, and not where another lies there."""
    from kdfm_ray import keys

    files = [
        tmp_path / name for name in ("w.safetensors", "moved.safetensors", "other.safetensors")
    ]
    for file, content in zip(files, (b"one", b"one", b"two"), strict=True):
        file.write_bytes(content)
    first, moved, other = (trials_of(weights=str(file))[0] for file in files)
    cells = Cells(tmp_path / "cells.jsonl", {})
    cells.add(first, Record("finished", made=cells.made(first)))
    again = Cells(tmp_path / "cells.jsonl", {})
    assert again.find(first) == again.find(moved) is not None
    assert again.find(first)["values"]["model.pretrained"] == "w.safetensors"
    assert str(tmp_path) not in (tmp_path / "cells.jsonl").read_text()
    assert again.find(other) is None
    files[2].unlink()
    keys.weights_hash.cache_clear()
    with pytest.raises(UserError, match=r"other\.safetensors cannot be read: No such file"):
        again.find(other)


def test_a_finished_cell_that_a_crash_kept_from_the_file_is_added_later(tmp_path, monkeypatch):
    """Also one of before there was a file; but none that other code has made."""
    from kdfm_ray import keys

    trials, path = trials_of(), tmp_path / "cells.jsonl"
    ledger, none = Ledger(tmp_path), Cells(None, {"torch": "2"})
    ledger.end(trials[0].id, "finished", row={}, made=none.made(trials[0]), seconds=4.0)
    ledger.end(trials[1].id, "stopped")
    ledger.end(trials[2].id, "finished", row={}, elsewhere=True)
    again = Ledger(tmp_path)
    assert give_cells(again, Cells(path, {"torch": "3"}), trials) == 0
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line["config_hash"] == trials[0].config.hash()
    assert (line["seconds"], line["versions"]) == (4.0, {"torch": "2"})  # that made it
    assert give_cells(again, Cells(path, {}), trials) == 0
    assert len(path.read_text().splitlines()) == 1

    ledger.end(trials[3].id, "finished", row={})  # of a folder that does not say
    monkeypatch.setitem(keys.VERSIONS, "inner", keys.VERSIONS["inner"] + 1)
    assert give_cells(ledger, Cells(path, {}), trials) == 2
    assert len(path.read_text().splitlines()) == 1


def test_a_stage_that_came_later_counts_from_its_second_version_on_and_where_it_is_used(
    tmp_path, monkeypatch
):
    from kdfm_ray import keys

    with_it = [
        dataclasses.replace(t, config=t.config.model_copy(update={"equal_compute": True}))
        for t in trials_of()
    ]
    without = trials_of()[0].config
    first = [keys.stages_hashes(config) for config in (with_it[0].config, without)]
    assert first[0] == first[1]
    assert first[0][0] == content_hash(keys.VERSIONS) == Cells(None, {}).made(with_it[0])["stages"]
    monkeypatch.setitem(keys.LATER_VERSIONS, "longer", 2)
    assert not set(keys.stages_hashes(with_it[0].config)) & set(first[0])
    assert keys.stages_hashes(without) == first[0]


def test_figures_of_before_count_as_long_as_networks_are_the_same(monkeypatch):
    from kdfm_ray import keys

    config = trials_of()[0].config
    now, before = keys.stages_hashes(config)
    assert before == "fc0a8a7cc0f5efb6"  # of the first results that were recorded
    assert {name: keys.VERSIONS[name] for name in keys.FIGURES} == {
        "tested": 2,
        "evaluation": 3,
        "pictures": 1,
    }, "see EARLIER_FIGURES, then change this"
    monkeypatch.setitem(keys.VERSIONS, "labels", keys.VERSIONS["labels"] + 1)
    assert not set(keys.stages_hashes(config)) & {now, before}


def test_a_file_of_results_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "cells.jsonl"):
        with pytest.raises(UserError, match="cannot be used"):
            Cells(path, {}).check()
    path = tmp_path / "new" / "cells.jsonl"
    Cells(path, {})
    assert not path.exists()  # for whoever only reads
    Cells(path, {}).check()
    assert path.exists()


def test_lines_are_appended_after_a_torn_one(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    append_line(path, {"c": 3})
    assert path.read_text().splitlines() == ['{"a": 1}', '{"b": ', '{"c": 3}']
