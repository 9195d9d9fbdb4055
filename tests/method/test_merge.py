import pytest
import torch

from kdfm_ray.method.merge import merge_targets

SURE_0 = [0.97, 0.02, 0.01]
UNSURE_1 = [0.2, 0.5, 0.3]

#  case            probs              trusted   target     mask            trusted used    override
CASES = {
    "not trusted": ([SURE_0, UNSURE_1], [-1, -1], [0, 0], [True, False], [False] * 2, [False] * 2),
    "fill the gap": ([SURE_0, UNSURE_1], [-1, 2], [0, 2], [True, True], [False, True], [False] * 2),
    "overridden": ([SURE_0, SURE_0], [1, 2], [0, 0], [True] * 2, [False] * 2, [True] * 2),
    "agrees, sure": ([SURE_0], [0], [0], [True], [False], [False]),
    "agrees, unsure": ([UNSURE_1], [1], [1], [True], [True], [False]),
}


@pytest.mark.parametrize("name", CASES)
def test_by_table(name):
    probs, trusted, target, mask, from_trusted, override = CASES[name]
    got = merge_targets(torch.tensor(probs), torch.tensor(trusted), tau_inner=0.95)
    assert got.target.tolist() == target
    assert got.mask.tolist() == mask
    assert got.from_trusted.tolist() == from_trusted
    assert got.override.tolist() == override


def test_a_confidence_equal_to_the_threshold_is_confident():
    probs = torch.tensor([[0.75, 0.25], [0.74, 0.26]])  # 0.75 is exact in float32
    got = merge_targets(probs, torch.tensor([-1, -1]), tau_inner=0.75)
    assert got.mask.tolist() == [True, False]


def test_an_empty_batch():
    got = merge_targets(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), tau_inner=0.95)
    assert [len(field) for field in got] == [0, 0, 0, 0]


def test_without_trusted_labels_it_is_fixmatch():
    probs = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).mul(4).softmax(1)
    got = merge_targets(probs, torch.full((200,), -1), tau_inner=0.95)
    sure = probs.amax(1) >= 0.95
    assert 0 < sure.sum() < 200
    assert torch.equal(got.mask, sure)
    assert torch.equal(got.target[sure], probs.argmax(1)[sure])
    assert not got.from_trusted.any()
    assert not got.override.any()
