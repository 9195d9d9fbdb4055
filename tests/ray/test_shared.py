"""A store that some nodes do not see is refused; all of a cluster are asked in tests/cluster."""

import pytest

from kdfm_ray.jobs.shared import UNSEEN, refuse_unshared, refuse_unusable, trouble_here
from kdfm_ray.remote import arrow_place
from kdfm_ray.store import Store
from kdfm_ray.types import UserError


def test_nodes_that_do_not_see_it_are_named():
    refuse_unshared("/store", blind=[], late=[], nodes=3)
    with pytest.raises(UserError, match=r"1 of 3 nodes do not see it: 10.0.0.7 \(abc\).*--store"):
        refuse_unshared("/store", blind=["10.0.0.7 (abc)"], late=[], nodes=3)
    with pytest.raises(UserError, match=r"no answer within 60 s from 10.0.0.8"):
        refuse_unshared("/store", blind=[], late=["10.0.0.8"], nodes=3)


def test_nodes_from_which_a_uri_does_not_work_are_named():
    refuse_unusable("s3://b", {}, late=[], nodes=3)
    with pytest.raises(UserError, match=r"from 2 of 3 nodes .*: 10.0.0.7 \(abc\): no key; no answ"):
        refuse_unusable("s3://b", {"10.0.0.7 (abc)": "no key"}, late=["10.0.0.8"], nodes=3)


def test_ray_train_writes_where_pyarrow_knows_no_such_uri(tmp_path):
    import fsspec
    from ray.train.v2._internal.execution.storage import StorageContext

    path, files = arrow_place("memory://bucket/store/ray_train")
    StorageContext(path, "crew-1", storage_filesystem=files)  # writes a mark and looks for it
    assert fsspec.filesystem("memory").find("/bucket/store/ray_train/crew-1")
    fsspec.filesystem("memory").store.clear()
    assert arrow_place(str(tmp_path)) == (str(tmp_path), None)
    assert arrow_place(f"file://{tmp_path}/a") == (f"{tmp_path}/a", None)


@pytest.mark.parametrize("kind", ["", "file://"])
def test_a_node_sees_the_mark_or_does_not(tmp_path, kind):
    root, name = tmp_path / "store", ".shared-1"
    assert trouble_here(f"{kind}{root}", name), "no such folder here"
    store = Store(f"{kind}{root}")
    assert trouble_here(store.root, name) == UNSEEN
    with store.mark(name):
        assert trouble_here(store.root, name) == ""
        (root / name).write_text("something else of that name")
        assert trouble_here(store.root, name) == UNSEEN
    assert list(root.iterdir()) == [], "nothing is left"


def test_a_uri_that_does_not_work_from_a_node_is_told_in_words():
    assert "cannot be opened" in trouble_here("nosuch://bucket/x", "m")
