"""Files of pseudo labels: whole or not there, whatever they are written to."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdfm_ray.jobs.label import _is_done, _lists, _part, _whole_file
from kdfm_ray.remote import open_files

SHARD = {"start": 0, "stop": 6}


def rows(first, last, rng):
    index = list(range(first, last))
    values = _lists(rng.random((len(index), 4), dtype="float32"))
    return pa.table({"index": index, "pseudo_label": index, "embedding": values})


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["folder", "uri"])
def folder(request, tmp_path):
    return str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}"


def write(folder, parts):
    with _whole_file(f"{folder}/{_part(**SHARD)}") as file:
        for part in parts:
            file.write(part)


def test_row_groups_make_one_file(folder, rng):
    parts = [rows(0, 4, rng), rows(4, 6, rng)]
    write(folder, parts)
    files, path = open_files(folder)
    assert _is_done(files, path, SHARD)
    assert not _is_done(files, path, SHARD | {"stop": 7})
    (name,) = files.ls(path, detail=False)
    with files.open(name, "rb") as file:
        content = file.read()
    found = pq.ParquetFile(pa.BufferReader(content))
    assert found.read().equals(pa.concat_tables(parts))
    assert found.num_row_groups == 2
    group = found.metadata.row_group(0)
    encodings = {group.column(k).path_in_schema: group.column(k).encodings for k in range(3)}
    assert "RLE_DICTIONARY" in encodings["pseudo_label"]
    assert "RLE_DICTIONARY" not in encodings["embedding.list.element"]


@pytest.mark.parametrize("written", [0, 1])
def test_a_file_that_was_not_finished_is_not_there(folder, rng, written):
    def parts():
        yield from [rows(0, 4, rng)] * written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, parts())
    files, path = open_files(folder)
    files.makedirs(path, exist_ok=True)
    assert files.ls(path, detail=False) == []
    assert not _is_done(files, path, SHARD)
