"""kdfm predict in this process: tables, calibration, files that cannot be read, mistakes."""

import csv
import json
import os
import shutil
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import kdfm_ray as kdfm
from kdfm_ray import cli
from kdfm_ray.predictions.table import SCHEMA
from kdfm_ray.types import RunFailed, UserError

COLUMNS = SCHEMA.names


@pytest.fixture
def some(digit_files, tmp_path):
    """Twelve digits, and four files that are none."""
    folder = tmp_path / "new"
    (folder / "deep").mkdir(parents=True)
    for number in range(12):
        shutil.copy(digit_files / f"{number:04d}.png", folder / "deep" / f"{number:04d}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    whole = (digit_files / "0000.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "link.png").symlink_to("nowhere.png")
    return folder


def test_rows_say_what_the_network_says(digits_run, digit_files):
    run = kdfm.load(digits_run)
    found = run.predict(digit_files, workers=0, batch_size=100)
    assert found.count == len(found.rows) == 1797
    assert sum(found.labels.values()) == 1797
    assert found.skipped == []
    paths = [row["path"] for row in found.rows]
    assert paths == sorted(paths)
    assert list(found.rows[0]) == COLUMNS
    pixels = [Image.open(path).resize((16, 16), Image.Resampling.BILINEAR) for path in paths]
    logits = np.log(run.predict_probs(np.stack([np.asarray(image) for image in pixels])[..., None]))
    scaled = np.exp(logits / found.calibration.temperature)
    probs = scaled / scaled.sum(axis=1, keepdims=True)
    order = np.argsort(-probs, axis=1)
    for rank, end in enumerate(("", "_2", "_3")):
        chosen = probs[np.arange(1797), order[:, rank]]
        given = [row[f"confidence{end}"] for row in found.rows]
        np.testing.assert_allclose(given, chosen, atol=2e-5)
    sure = probs.max(axis=1) > np.sort(probs)[:, -2] + 1e-4
    names = np.array([row["label"] for row in found.rows])
    assert (names == order[:, 0].astype(str))[sure].all()
    margin = [row["confidence"] - row["confidence_2"] for row in found.rows]
    np.testing.assert_allclose([row["margin"] for row in found.rows], margin, atol=1e-6)


def test_the_temperature_is_fitted_once_and_kept_for_those_weights(digits_run, some):
    run = kdfm.load(digits_run)
    first = run.predict(some).calibration
    assert first.images == run.report["data"]["val"]
    assert first.loss[1] <= first.loss[0] + 1e-3
    kept = digits_run / "calibration.json"
    content = json.loads(kept.read_text())
    assert content["temperature"] == first.temperature
    try:
        kept.write_text(json.dumps(content | {"temperature": 3.0}))
        assert run.predict(some).calibration.temperature == 3.0
        kept.write_text(json.dumps(content | {"temperature": 3.0, "model": "another"}))
        assert run.predict(some).calibration == first
        kept.write_text("{")
        assert run.predict(some).calibration == first
    finally:
        kept.write_text(json.dumps(content))


def test_without_its_images_a_run_is_not_calibrated(digits_run, some, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(digits_run, moved, ignore=shutil.ignore_patterns("calibration.json"))
    begun = json.loads((moved / "begun.json").read_text())
    (moved / "begun.json").write_text(json.dumps(begun | {"store": str(tmp_path / "gone")}))
    found = kdfm.load(moved).predict(some, progress=True)
    assert found.calibration.temperature == 1.0
    assert "confidence is not calibrated" in capsys.readouterr().out
    assert not (moved / "calibration.json").exists()
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_all_formats_hold_the_same(digits_run, some, tmp_path, ending):
    run = kdfm.load(digits_run)
    rows = run.predict(some).rows
    out = tmp_path / "deep" / f"out.{ending}"
    found = run.predict(some, out, review=3)
    assert found.rows == []
    assert found.count == 12
    if ending == "parquet":
        written = pq.read_table(out).to_pylist()
        assert pq.read_schema(out).equals(SCHEMA)
    elif ending == "csv":
        with out.open(newline="") as file:
            written = list(csv.DictReader(file))
    else:
        written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [list(row) for row in written] == [COLUMNS] * 12
    for row, expected in zip(written, rows, strict=True):
        assert (row["path"], row["label"]) == (expected["path"], expected["label"])
        assert float(row["margin"]) == pytest.approx(expected["margin"], abs=1e-6)
    with (tmp_path / "deep" / "out.review.csv").open(newline="") as file:
        review = list(csv.DictReader(file))
    assert [row["path"] for row in review] == [row["path"] for row in found.review]
    assert len({row["cluster"] for row in review}) == 3
    least = min(rows, key=lambda row: row["margin"])
    assert review[0]["path"] == least["path"]
    names = {path.name for path in out.parent.iterdir()}
    assert names == {out.name, "out.review.csv", "out.skipped.csv"}
    assert oct(out.stat().st_mode)[-3:] in ("644", "664", "600", "640", "660")


def test_files_that_cannot_be_read_are_listed_and_move_no_other(digits_run, some, tmp_path):
    run = kdfm.load(digits_run)
    out = tmp_path / "out.csv"
    found = run.predict(some, out)
    reasons = {os.path.basename(path): reason for path, reason in found.skipped}
    assert set(reasons) == {"cut.png", "empty.png", "link.png", "text.jpg"}
    assert "truncated" in reasons["cut.png"]
    assert reasons["empty.png"] == "empty (0 bytes)"
    assert reasons["link.png"] == "no such file (a broken link?)"
    assert "not an image" in reasons["text.jpg"]
    beside = tmp_path / "out.skipped.csv"
    with beside.open(newline="") as file:
        assert [(row["path"], row["reason"]) for row in csv.DictReader(file)] == found.skipped
    run.predict(some / "deep", out)
    assert not beside.exists(), "left by another command"


def test_a_name_that_is_no_utf8(digits_run, some):
    folder = some / "odd"
    folder.mkdir()
    shutil.copy(some / "deep" / "0000.png", folder / os.fsdecode(b"caf\xe9.png"))
    (row,) = kdfm.load(digits_run).predict(folder).rows
    assert row["path"].endswith("caf\\udce9.png")


def test_the_command_prints_what_it_did(digits_run, some, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    arguments = ["predict", str(digits_run), str(some), "--out", str(out), "--review", "2"]
    assert cli.main([*arguments, "--scale.num-workers", "0"]) == 0
    text = capsys.readouterr().out
    assert "12 images in" in text
    assert "validation images (calibration error" in text
    assert "4 files cannot be read" in text
    assert f"written: {out}, {tmp_path / 'p.skipped.csv'}, {tmp_path / 'p.review.csv'}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{some}"], "give --out FILE"),
        (["{run}", "{some}", "--out", "p.xlsx"], "must be one of .parquet, .csv, .jsonl"),
        (["{some}", "{some}", "--out", "p.csv"], "no finished run in"),
        (["nowhere", "{some}", "--out", "p.csv"], "no finished run in nowhere"),
        (["{run}", "nowhere", "--out", "p.csv"], "nowhere does not exist"),
        (["{run}", "{empty}", "--out", "p.csv"], "holds no image"),
        (["{run}", "{some}/*.jpg", "--out", "p.csv"], "none of 1 images can be read"),
        (["{run}", "{some}", "--out", "p.csv", "--review", "-1"], "--review -1: give 0 or more"),
        (["{run}", "{some}", "--out", "p.csv", "--batch-size", "0"], "--batch-size 0"),
        (["{run}", "{some}", "--out", "p.csv", "--revew", "3"], "does not take --revew"),
    ],
)
def test_mistakes(digits_run, some, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    names = {"run": digits_run, "some": some, "empty": empty}
    status = cli.main(["predict", *(text.format(**names) for text in arguments)])
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("kdfm: ")
    assert message in captured.err
    assert not list(tmp_path.glob("p.*"))
    assert not list(tmp_path.glob(".p.*"))


def test_a_damaged_run(digits_run, some, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    (run / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        kdfm.load(run).predict(some)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no network"):
        kdfm.load(run).predict(some)
    (run / "report.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        kdfm.load(run)


def test_a_table_that_cannot_be_written(digits_run, some, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="cannot be written"):
        kdfm.load(digits_run).predict(some, tmp_path / "file" / "p.csv")


def test_a_huge_image_is_no_reason_to_stop(digits_run, some, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match="none of 16 images"):
            kdfm.load(digits_run).predict(some)
