"""Weights files: safetensors without pickle, integers kept, damage and misfits told, averages exact."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trainer import networks, weights
from trainer.errors import WeightsError

FLOATS = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4), elements=st.floats(-9, 9, width=32))


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=6), FLOATS, min_size=1, max_size=5))
def test_bytes_and_vectors_round_trip(named: dict[str, np.ndarray]) -> None:
    back = weights.from_bytes(weights.to_bytes(named))
    assert back.keys() == named.keys() and all(np.array_equal(back[n], named[n]) for n in named)
    vector, layout = weights.flatten(named)
    again = weights.unflatten(vector, layout)
    assert all(np.array_equal(again[n], named[n]) and again[n].shape == named[n].shape for n in named)


def test_num_batches_tracked_stays_an_integer(tmp_path: Path) -> None:
    model = networks.build("small_resnet", {"classes": 2})
    model.train()(torch.randn(4, 1, 16, 16))
    ours = weights.from_module(model)
    assert ours["norm.num_batches_tracked"].dtype == np.int64 and ours["norm.num_batches_tracked"] == 1
    weights.save(tmp_path / "m.safetensors", ours)
    mean = weights.average([weights.load(tmp_path / "m.safetensors"), ours], [1, 2])
    assert mean["norm.num_batches_tracked"].dtype == np.int64 and mean["norm.num_batches_tracked"] == 1
    fresh = networks.build("small_resnet", {"classes": 2})
    weights.into_module(fresh, mean)
    assert fresh.state_dict()["norm.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(fresh.state_dict()["norm.running_var"], model.state_dict()["norm.running_var"])


def test_average_weighs_by_samples() -> None:
    mean = weights.average([{"w": np.float32([0.0])}, {"w": np.float32([4.0])}], [300, 100])
    assert mean["w"] == 1.0 and mean["w"].dtype == np.float32
    with pytest.raises(WeightsError, match="positive sample count"):
        weights.average([{"w": np.float32([0.0])}], [0])


def test_a_pickle_or_a_cut_file_is_refused(tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (pytest.fail, ("a pickle was executed",))

    (tmp_path / "evil").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        weights.load(tmp_path / "evil")
    whole = weights.to_bytes({"w": np.zeros(100, np.float32)})
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        weights.from_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="cannot read weights from absent"):
        weights.load(tmp_path / "absent")


def test_weights_of_another_network_are_refused() -> None:
    model = networks.build("small_resnet", {"classes": 2})
    good = weights.from_module(model)
    with pytest.raises(WeightsError, match=r"lack the array 'head\.bias'"):
        weights.into_module(model, {n: w for n, w in good.items() if n != "head.bias"})
    with pytest.raises(WeightsError, match="has shape"):
        weights.into_module(model, good | {"head.bias": np.zeros(5, np.float32)})
    with pytest.raises(WeightsError, match="lacks"):
        weights.into_module(model, good | {"extra": np.zeros(1, np.float32)})
    with pytest.raises(WeightsError, match="NaN"):
        weights.into_module(model, good | {"head.bias": np.float32([np.nan, 0])})
