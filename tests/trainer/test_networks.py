"""Installed networks: built by name, refused otherwise, normalised as asked, equal for equal seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer import networks, weights
from trainer.errors import BundleError, SpecError


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", ["small_resnet", "monai_densenet", "monai_resnet"])
def test_classifiers_give_one_logit_a_class(name: str, norm: str) -> None:
    model = networks.build(name, {"in_channels": 1, "classes": 3, "norm": norm}).eval()
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    kinds = {type(m).__name__ for m in model.modules()}
    assert ("BatchNorm2d" in kinds) == (norm == "batch") and ("GroupNorm" in kinds) == (norm == "group")


def test_vit_gives_one_logit_a_class() -> None:
    assert networks.build("monai_vit", {"classes": 3, "size": 32}).eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("monai_unet", ("batch", "group")),
        ("monai_dynunet", ("batch", "group")),
        ("monai_segresnet", ("batch", "group")),
        ("monai_densenet", ("batch", "group")),
        ("monai_vit", ("",)),
    ],
)
def test_volume_networks_take_either_norm(name: str, norms: tuple[str, ...]) -> None:
    for norm in norms:
        args = {"classes": 3, "dimensions": 3} | ({"norm": norm} if norm else {"size": 32, "patch": 16})
        model = networks.build(name, args).eval()
        shape = (1, 3) if name in ("monai_densenet", "monai_vit") else (1, 3, 32, 32, 32)
        assert model(torch.zeros(1, 1, 32, 32, 32)).shape == shape
        kinds = {type(m).__name__ for m in model.modules()}
        assert ("BatchNorm3d" in kinds) == (norm == "batch")
        assert ("GroupNorm" in kinds) == (norm == "group") and "BatchNorm2d" not in kinds


@pytest.mark.parametrize("name", ["monai_unet", "monai_segresnet", "monai_dynunet"])
def test_segmenters_keep_height_and_width(name: str) -> None:
    assert networks.build(name, {"classes": 3}).eval()(torch.zeros(2, 1, 32, 48)).shape == (2, 3, 32, 48)


def test_an_unknown_network_or_argument_is_refused() -> None:
    with pytest.raises(BundleError, match="not installed here; choose one of"):
        networks.build("os.system", {})
    with pytest.raises(SpecError, match="no argument 'width'"):
        networks.build("small_resnet", {"width": [8]})
    with pytest.raises(SpecError, match="norm must be"):
        networks.build("small_resnet", {"norm": "layer"})


def test_initial_weights_follow_the_seed_alone() -> None:
    args = {"classes": 3}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = networks.initial_weights("small_resnet", args, 7)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = networks.initial_weights("small_resnet", args, 7), networks.initial_weights("small_resnet", args, 8)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("norm", "suffixes"), [("batch", 5), ("group", 2)])
def test_norm_layers_are_found_by_type(norm: str, suffixes: int) -> None:
    model = networks.build("small_resnet", {"classes": 2, "norm": norm, "widths": [8, 8]})
    keys = networks.norm_keys(model)
    assert len(keys) == 5 * suffixes  # two blocks of two and the last one
    assert keys <= set(weights.from_module(model)) and all("norm" in key for key in keys)
