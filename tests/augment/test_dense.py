"""Strong views by fixed kernels equal those by groups of images, bit for bit."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdfm_ray.augment.captured import MANY_VALUES, STEP, Recording, Recordings
from kdfm_ray.augment.dense import dense_view, lay_out
from kdfm_ray.augment.params import draw_strong, take
from kdfm_ray.augment.views import grouped_view


def batch(n, channels=3, size=(32, 32), num_ops=2, prob=0.5, seed=0):
    """Random pixels, flat images among them, and what is to be done to them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, channels, *size), dtype=np.uint8)
    images[::5] = images[::5, :, :1, :1]
    params = draw_strong(rng, n, size=size, flip=True, num_ops=num_ops, prob=prob, cutout_prob=0.7)
    return torch.from_numpy(images), params


def sent(layout):
    return [torch.tensor(np.ascontiguousarray(values)) for values in layout]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num_ops", [0, 1, 2, 4])
@pytest.mark.parametrize("size", [(32, 32), (7, 5), (2, 9), (1, 1)])
def test_the_same_views(channels, num_ops, size):
    for seed in range(3):
        images, params = batch(120, channels, size, num_ops, prob=0.9, seed=seed)
        views = dense_view(images, sent(lay_out(params, size, 120)))
        assert torch.equal(views, grouped_view(images, params))


def test_what_is_more_than_the_images_stays_as_it_is():
    images, params = batch(40)
    longer = torch.cat([images, images])
    views = dense_view(longer, sent(lay_out(params, (32, 32), 80)))
    assert torch.equal(views[:40], grouped_view(images, params))
    assert torch.equal(views[40:], images)


def test_nothing_that_was_drawn_changes_what_a_gpu_does():
    """Tensors without values: whatever looked at one, or came from the host, would fail."""
    images, params = batch(8)
    there = [values.to("meta") for values in sent(lay_out(params, (32, 32), 8))]
    assert dense_view(images.to("meta"), there).shape == images.shape


class Graph(TorchDispatchMode):
    """A CUDA graph for CPUs: the same operations again, on the same memory."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def pool(self):
        return self.shared or id(self)

    def replay(self):
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            if isinstance(result, torch.Tensor) and again.data_ptr() != result.data_ptr():
                result.copy_(again)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def recording(monkeypatch):
    """``Recording`` without a GPU."""
    here = torch.autograd.profiler.record_function  # any context manager of one argument

    def capture(graph, *, pool, stream, capture_error_mode):
        assert isinstance(stream, Stream)
        graph.shared = pool
        return graph

    cuda = {
        "device": lambda device: here("device"),
        "stream": lambda stream: here("stream"),
        "Stream": Stream,
        "current_stream": Stream,
        "CUDAGraph": Graph,
        "graph": capture,
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Recording


def test_a_recording_is_replayed_for_other_images_and_other_numbers(recording):
    recordings = Recordings(recording, pin=False)
    for seed in range(4):
        for n in (STEP, STEP - 3, 2 * STEP, 5):
            images, params = batch(n, seed=seed)
            views = recordings.view(images, params)
            assert torch.equal(views, grouped_view(images, params)), (seed, n)
    assert len(recordings) == 2, "one for each multiple of STEP"
    assert len({one.pool for one in recordings._known.values()}) == 1, "they share their memory"
    kept = recordings.view(images, params)
    expected = kept.clone()
    recordings.view(*batch(5, seed=9))
    assert torch.equal(kept, expected), "views are no memory of the recording"
    recordings.forget()
    assert torch.equal(recordings.view(images, params), expected)


def test_images_of_any_layout_and_a_part_of_the_batch(recording):
    recordings = Recordings(recording, pin=False)
    images, params = batch(STEP)
    expected = grouped_view(images, params)
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(recordings.view(last, params), expected)
    some = np.array([3, 1, 60])
    views = recordings.view(images[some], take(params, some))
    assert torch.equal(views, expected[some])


def test_batches_of_large_images_and_empty_ones_are_not_recorded():
    recordings = Recordings(pin=False)
    side = 1 + int((MANY_VALUES / 3 / STEP) ** 0.5)
    assert recordings.view(*batch(1, size=(side, side))) is None, "it would be STEP images"
    assert recordings.view(*batch(0)) is None
    torch.use_deterministic_algorithms(True)
    try:
        assert recordings.view(*batch(4)) is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert not recordings.failed


def test_a_gpu_that_cannot_record_is_asked_once():
    tries = []

    def fails(*args):
        tries.append(args)
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("capture invalidated")

    recordings = Recordings(fails, pin=False)
    with pytest.warns(UserWarning, match="kernel by kernel.*operation not permitted"):
        assert recordings.view(*batch(4)) is None
    assert recordings.view(*batch(4)) is None
    assert len(tries) == 1


def test_a_shape_for_which_memory_does_not_last_is_not_tried_again(recording):
    tries = []

    def record(function, images, *others):
        tries.append(len(images))
        if len(images) > STEP:
            raise torch.OutOfMemoryError("out of memory")
        return recording(function, images, *others)

    recordings = Recordings(record, pin=False)
    for n in (STEP + 1, STEP + 2, 3):
        images, params = batch(n)
        views = recordings.view(images, params)
        assert (views is None) == (n > STEP)
    assert torch.equal(views, grouped_view(images, params))
    assert tries == [2 * STEP, STEP]
    assert (len(recordings), recordings.failed) == (1, False)
