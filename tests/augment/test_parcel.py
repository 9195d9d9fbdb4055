"""Parcels: what comes out is what went in, whatever the sizes beside it."""

import numpy as np
import pytest
import torch

from kdfm_ray.augment.parcel import Parcel, pack, unpack

CPU = torch.device("cpu")
ARRAYS = [
    np.array([True, False, True]),
    np.arange(5),
    np.empty(0, np.int64),
    np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)[:, 1:],
    np.arange(12, dtype=np.int32).reshape(6, 2),
    np.broadcast_to(np.arange(3), (2, 3)),
]


def test_one_buffer_holds_them_all():
    found = unpack(pack(ARRAYS, pin=False), ARRAYS, CPU)
    for tensor, values in zip(found, ARRAYS, strict=True):
        assert tensor.numpy().dtype == values.dtype
        assert np.array_equal(tensor.numpy(), values)


def test_what_arrives_is_a_copy():
    parcel = Parcel()
    values = np.arange(4)
    values.flags.writeable = False
    places = [parcel.add(values), parcel.add(ARRAYS[0])]
    sent = parcel.send(CPU)
    sent[places[0]][0] = 9
    assert values[0] == 0
    assert sent[places[1]].tolist() == [True, False, True]


@pytest.mark.parametrize("device", ["meta"])
def test_another_device_gets_one_copy(device, monkeypatch):
    """As a GPU would, but for the pinning."""
    copies = []
    real = torch.Tensor.to

    def to(tensor, *args, **kwargs):
        copies.append(tensor.nbytes)
        return real(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    parcel = Parcel()
    for values in ARRAYS:
        parcel.add(values)
    sent = parcel.send(torch.device(device))
    assert [tuple(tensor.shape) for tensor in sent] == [values.shape for values in ARRAYS]
    assert len(copies) == 1
