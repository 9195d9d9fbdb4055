"""Order and randomness: every image once an epoch, any step by itself, slices that fit."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfm_ray.data.streams import IndexStream, permutation, rng, worker_slice
from kdfm_ray.types import UserError

SIZES = st.integers(1, 40)


def test_rng_is_a_function_of_its_arguments():
    draws = {
        (seed, step, stream): tuple(rng(seed, step, stream).integers(0, 2**60, 4))
        for seed in (0, 1, 11)
        for step in (0, 1, 11)
        for stream in ("a", "b", "1/a")
    }
    assert len(set(draws.values())) == len(draws)
    for arguments, values in draws.items():
        assert tuple(rng(*arguments).integers(0, 2**60, 4)) == values


def test_rng_never_changes_silently():
    """Saved splits and resumed runs hang on these numbers."""
    assert rng(3, 5, "golden").bit_generator.random_raw(3).tolist() == GOLDEN_RAW
    assert permutation(8, 3, 5, "golden").tolist() == GOLDEN_PERMUTATION


GOLDEN_RAW = [13198956831434323241, 12133515344600799447, 11729851406272524924]
GOLDEN_PERMUTATION = [3, 5, 7, 4, 2, 1, 0, 6]


def test_streams_are_uncorrelated():
    a, b, c = (
        rng(0, step, name).normal(size=20_000) for step, name in [(0, "a"), (0, "b"), (1, "a")]
    )
    for left, right in [(a, b), (a, c), (b, c)]:
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.03  # 4 standard errors


def test_permutation_is_uniform():
    """Of three things each of the six orders comes about equally often."""
    orders = [tuple(permutation(3, 0, step, "u")) for step in range(3000)]
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert max(abs(count - 500) for count in counts) < 90  # 4 standard deviations


@given(size=SIZES, batch=st.integers(1, 100), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_each_position_once_an_epoch(size, batch, seed):
    epochs = 3
    steps = -(-size * epochs // batch)
    stream = IndexStream(size, batch, seed=seed, stream="x")
    flow = np.concatenate([stream.at(step) for step in range(steps)])[: size * epochs]
    for epoch in flow.reshape(epochs, size):
        assert sorted(epoch) == list(range(size))


@given(size=SIZES, batch=st.integers(1, 60), steps=st.lists(st.integers(0, 50), min_size=1))
@settings(deadline=None, max_examples=60)
def test_direct_access_equals_sequential(size, batch, steps):
    sequential = IndexStream(size, batch, seed=1, stream="x")
    walked = [sequential.at(step) for step in range(max(steps) + 1)]
    jumping = IndexStream(size, batch, seed=1, stream="x")
    for step in steps:
        found = jumping.at(step)
        assert found.dtype == np.int64
        assert found.shape == (batch,)
        np.testing.assert_array_equal(found, walked[step])
        np.testing.assert_array_equal(
            IndexStream(size, batch, seed=1, stream="x").at(step), walked[step]
        )


def test_epochs_seeds_and_names_differ():
    def first(seed, stream, step=0):
        return tuple(IndexStream(50, 50, seed=seed, stream=stream).at(step))

    orders = {first(0, "x"), first(1, "x"), first(0, "u"), first(0, "x", step=1)}
    assert len(orders) == 4
    assert tuple(range(50)) not in orders


def test_what_at_returns_may_be_written_to():
    stream = IndexStream(5, 5, seed=0, stream="x")
    before = stream.at(0).copy()
    stream.at(0)[:] = -7
    np.testing.assert_array_equal(stream.at(0), before)


def test_stream_travels_by_pickle():
    stream = IndexStream(9, 4, seed=2, stream="x")
    stream.at(1)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stream)).at(7), stream.at(7))


@pytest.mark.parametrize(("size", "batch"), [(0, 4), (4, 0), (-1, 4)])
def test_stream_refuses_nothing_to_draw(size, batch):
    with pytest.raises(ValueError, match=">= 1"):
        IndexStream(size, batch, seed=0, stream="x")


def test_stream_refuses_negative_steps():
    with pytest.raises(ValueError, match="from 0"):
        IndexStream(4, 2, seed=0, stream="x").at(-1)


@given(n=st.integers(1, 300), data=st.data())
@settings(deadline=None, max_examples=100)
def test_worker_slices_cover_the_batch(n, data):
    world = data.draw(st.integers(1, n))
    parts = [np.arange(n)[worker_slice(n, rank, world)] for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_too_many_workers_are_told_what_to_do():
    with pytest.raises(UserError, match=r"5 workers .* batch of 4 .*at most 4 workers"):
        worker_slice(4, 0, 5)


@pytest.mark.parametrize("rank", [-1, 3])
def test_rank_must_be_in_the_world(rank):
    with pytest.raises(ValueError, match=r"0\.\.2"):
        worker_slice(8, rank, 3)
