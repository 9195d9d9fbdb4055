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


#  own label 0 with confidence 0.97, trusted label 1; the same with 0.99; agreed; unsure
OF_RULES = ([[0.97, 0.03], [0.99, 0.01], [0.99, 0.01], [0.6, 0.4]], [1, 1, 0, 1])
RULES = {
    "own_first": (0.95, [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [1, 1, 0, 0]),
    "own_first, margin": (0.98, [1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0]),
    "trusted_first": (None, [1, 1, 0, 1], [1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 0, 0]),
    "agreement": (None, [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_where_the_labels_differ(name):
    tau_override, target, mask, from_trusted, override = RULES[name]
    probs, trusted = (torch.tensor(values) for values in OF_RULES)
    rule = name.partition(",")[0]
    got = merge_targets(probs, trusted, tau_inner=0.95, rule=rule, tau_override=tau_override)
    assert got.mask.tolist() == [bool(value) for value in mask]
    assert got.target.tolist() == target
    assert got.from_trusted.tolist() == [bool(value) for value in from_trusted]
    assert got.override.tolist() == [bool(value) for value in override]


@pytest.mark.parametrize("rule", ["own_first", "trusted_first", "agreement"])
def test_without_trusted_labels_all_rules_are_one(rule):
    probs = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).mul(4).softmax(1)
    nothing = torch.full((200,), -1)
    got = merge_targets(probs, nothing, tau_inner=0.9, rule=rule)
    fixmatch = merge_targets(probs, nothing, tau_inner=0.9)
    assert all(torch.equal(a, b) for a, b in zip(got, fixmatch, strict=True))
