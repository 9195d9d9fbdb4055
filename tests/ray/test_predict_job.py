"""kdfm predict as a Ray Data job: the same rows as in one process, in order, by two actors."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

import kdfm_ray as kdfm

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_two_actors_say_what_one_process_says(digits_run, digit_files, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    for path in sorted(digit_files.iterdir())[:300]:
        shutil.copy(path, new)
    (new / "0100.png").write_bytes(b"")
    run = kdfm.load(digits_run)
    (digits_run / "calibration.json").unlink(missing_ok=True)
    out = tmp_path / "ray.parquet"
    # Small batches: shards of 64 images, many more than actors.
    found = run.predict(new, out, workers=2, batch_size=16, review=10)
    assert found.count == 299
    assert found.skipped == [(str(new / "0100.png"), "empty (0 bytes)")]
    here = run.predict(new, tmp_path / "here.parquet", workers=0, batch_size=16, review=10)
    assert here.calibration == found.calibration, "kept by the job"
    assert json.loads((digits_run / "calibration.json").read_text())["images"] == 143
    rows, expected = (pq.read_table(path).to_pylist() for path in (out, here.out))
    assert [row["path"] for row in rows] == [row["path"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["confidence"] == pytest.approx(other["confidence"], abs=1e-5)
        if other["margin"] > 1e-4:
            assert row["label"] == other["label"]
    assert len(found.review) == 10
