"""Matching on a device without float64, which is played by tensors that refuse it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ditf_probe.features.fusion import joint_pca
from ditf_probe.matching import MatchingRule, match_by_rule, match_keypoints, sample_descriptors, similarity_maps
from ditf_probe.matching.rules import Check, Kind
from ditf_probe.metrics.pck import pck_counts

MPS = torch.device("mps")


class OnMps(Tensor):
    """A tensor of the other device."""


def on_cpu(value: object) -> object:
    return torch.device("cpu") if isinstance(value, torch.device) and value == MPS else value


class Device(TorchFunctionMode):
    """Moves tensors between the CPU and the played device; refuses float64 there, and operations across devices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return MPS if isinstance(args[0], OnMps) else func(*args)
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        goes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.device)]
        kind = OnMps if MPS in goes else Tensor if goes and func is Tensor.to else None
        args = [on_cpu(value) for value in args]
        kwargs = {key: on_cpu(value) for key, value in kwargs.items()}
        tensors = [value for value in args if isinstance(value, Tensor) and value.ndim]
        assert len({isinstance(tensor, OnMps) for tensor in tensors}) < 2, f"{func} sees two devices"
        result = func(*args, **kwargs)
        if kind is not None:
            result = result.as_subclass(kind)
        if isinstance(result, OnMps) and result.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return result


@pytest.fixture
def device() -> Iterator[None]:
    with Device():
        yield


def on_device(tensor: Tensor) -> Tensor:
    return tensor.clone().as_subclass(OnMps)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


SOURCE, TARGET = draw(6, 4, 5), draw(6, 5, 4)
POINTS = torch.tensor([[3.0, 8.0], [20.5, 11.0], [0.0, 0.0]])
VISIBLE = torch.tensor([True, True, False])


def test_the_played_device_refuses_float64(device: None) -> None:
    with pytest.raises(TypeError, match="no float64"):
        on_device(SOURCE).double()
    with pytest.raises(TypeError, match="no float64"):
        SOURCE.double().to(MPS)
    with pytest.raises(AssertionError, match="two devices"):
        on_device(SOURCE) + SOURCE


def test_matching_equals_that_on_the_cpu(device: None) -> None:
    inputs = (SOURCE, TARGET, POINTS)
    there = match_keypoints(*map(on_device, inputs), (16, 24), (32, 20), visible=on_device(VISIBLE))
    here = match_keypoints(*inputs, (16, 24), (32, 20), visible=VISIBLE)
    for found, expected in zip(there, here, strict=True):
        assert isinstance(found, OnMps)
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("check", ["none", "mutual", "cycle", "ratio"])
@pytest.mark.parametrize("kind", ["argmax_pixel", "argmax_grid", "window_softargmax", "kernel_softargmax"])
def test_rules_equal_those_on_the_cpu(device: None, kind: Kind, check: Check) -> None:
    inputs, rule = (SOURCE, TARGET, POINTS), MatchingRule(kind=kind, check=check)
    there = match_by_rule(*map(on_device, inputs), (16, 24), (32, 20), rule, visible=on_device(VISIBLE))
    here = match_by_rule(*inputs, (16, 24), (32, 20), rule, visible=VISIBLE)
    for found, expected in zip(there, here, strict=True):
        assert isinstance(found, OnMps)
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_descriptors_and_maps_equal_those_on_the_cpu(device: None) -> None:
    features = on_device(SOURCE).requires_grad_()
    descriptors = sample_descriptors(features, on_device(POINTS), (16, 24))
    assert isinstance(descriptors, OnMps)
    assert torch.equal(descriptors.detach().cpu(), sample_descriptors(SOURCE, POINTS, (16, 24)))
    descriptors.cpu().square().sum().backward()
    assert features.grad is not None
    maps = similarity_maps(on_device(descriptors.detach().cpu()), on_device(TARGET), (32, 20))
    assert isinstance(maps, OnMps)
    assert torch.equal(maps.cpu(), similarity_maps(descriptors.detach().cpu(), TARGET, (32, 20)))


@pytest.mark.parametrize("channels", [3, 6])
def test_joint_pca_equals_that_on_the_cpu(channels: int, device: None) -> None:
    there, here = joint_pca(on_device(SOURCE), on_device(TARGET), channels), joint_pca(SOURCE, TARGET, channels)
    for found, expected in zip(there, here, strict=True):
        assert isinstance(found, OnMps)
        assert torch.equal(found.cpu(), expected)


def test_counts_equal_those_on_the_cpu(device: None) -> None:
    inputs = (POINTS[None], POINTS[None] + 1.0, VISIBLE[None], torch.tensor([10.0]))
    there, here = pck_counts(*map(on_device, inputs)), pck_counts(*inputs)
    for found, expected in zip(there, here, strict=True):
        assert isinstance(found, OnMps)
        assert torch.equal(found.cpu(), expected)
