"""A store that some nodes do not see is refused; all of a cluster are asked in tests/faults."""

import pytest

from kdfm_ray.jobs.shared import _sees, refuse_unshared
from kdfm_ray.types import UserError


def test_nodes_that_do_not_see_it_are_named():
    refuse_unshared("/store", blind=[], late=[], nodes=3)
    with pytest.raises(UserError, match=r"1 of 3 nodes do not see it: 10.0.0.7 \(abc\).*--store"):
        refuse_unshared("/store", blind=["10.0.0.7 (abc)"], late=[], nodes=3)
    with pytest.raises(UserError, match=r"no answer within 60 s from 10.0.0.8"):
        refuse_unshared("/store", blind=[], late=["10.0.0.8"], nodes=3)


def test_a_node_sees_the_mark_or_does_not(tmp_path):
    mark = tmp_path / ".shared-1"
    assert not _sees(str(mark))
    mark.write_text("something else of that name")
    assert not _sees(str(mark))
    mark.write_text(".shared-1")
    assert _sees(str(mark))
