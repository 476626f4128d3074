"""The pure steps against slow loops and numbers worked out by hand."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.features.modulation import discard_channels, find_massive_channels, modulate


def slow_modulate(x: Tensor, shift: Tensor | None, scale: Tensor | None, norm: str, eps: float) -> Tensor:
    result = torch.empty(x.shape, dtype=torch.float64)
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            token = [float(v) for v in x[b, n]]
            centre = statistics.fmean(token) if norm == "layer_norm" else 0.0
            spread = math.sqrt(statistics.fmean((v - centre) ** 2 for v in token) + eps)
            for c, value in enumerate(token):
                factor = 1.0 if scale is None else 1.0 + float(scale[b, c])
                offset = 0.0 if shift is None else float(shift[b, c])
                result[b, n, c] = factor * (value - centre) / spread + offset
    return result


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize(("with_shift", "with_scale"), [(True, True), (False, True), (True, False), (False, False)])
def test_modulate_against_a_loop(norm: str, eps: float, with_shift: bool, with_scale: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 3, 7, generator=generator) + 1
    shift = torch.randn(2, 7, generator=generator) if with_shift else None
    scale = torch.randn(2, 7, generator=generator) if with_scale else None
    found = modulate(x, shift, scale, norm=norm, eps=eps)
    torch.testing.assert_close(found.double(), slow_modulate(x, shift, scale, norm, eps), rtol=1e-5, atol=1e-5)


def test_modulate_by_hand() -> None:
    x = torch.tensor([[[1.0, 3.0]]])  # mean 2, variance 1
    found = modulate(x, torch.tensor([10.0, 20.0]), torch.tensor([[1.0, 2.0]]), eps=0.0)
    assert found.tolist() == [[[10 - 2, 20 + 3]]]
    assert modulate(x, None, None, norm="rms_norm", eps=4.0).flatten().tolist() == pytest.approx([1 / 3, 1.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)) + 40).to(dtype)
    shift, scale = torch.full((1, 64), 0.1).to(dtype), torch.full((1, 64), 0.2).to(dtype)
    found = modulate(x, shift, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, modulate(x.float(), shift.float(), scale.float()))
    assert modulate(x.double(), None, None).dtype == torch.float64


def test_massive_values_that_float16_could_not_square() -> None:
    x = torch.zeros(1, 1, 4, dtype=torch.float16)
    x[..., 0] = 60000
    assert bool(modulate(x, None, None).isfinite().all())


def test_modulate_refuses() -> None:
    with pytest.raises(InputError, match="norm"):
        modulate(torch.zeros(1, 1, 2), None, None, norm="batch_norm")
    with pytest.raises(InputError, match="hidden_states"):
        modulate(torch.zeros(1, 2), None, None)


def test_discard_zeroes_just_the_channels() -> None:
    x = torch.arange(12.0).reshape(1, 2, 6) + 1
    found = discard_channels(x, [4, 0])
    assert found.tolist() == [[[0, 2, 3, 4, 0, 6], [0, 8, 9, 10, 0, 12]]]
    assert bool((x > 0).all())
    assert torch.equal(discard_channels(x, []), x)
    assert discard_channels(x.half(), [1]).dtype == torch.float16
    for channel in (6, -1):
        with pytest.raises(InputError, match="massive_channels"):
            discard_channels(x, [channel])


def test_massive_channels_by_hand() -> None:
    """Magnitudes 1 and 2 in equal numbers: the lower median is 1, so the threshold is the ratio itself."""
    x = torch.ones(1, 4, 6)
    x[:, :, 1::2] = -2
    x[0, :, 3] = torch.tensor([-99.0, 101.0, -99.0, 101.0])  # mean magnitude 100, mean 1
    x[0, :, 4] = torch.tensor([300.0, 1.0, 1.0, 1.0])  # massive on one token only: mean 75.75
    median = float(x.abs().median())
    assert median == 2.0
    assert find_massive_channels(x, ratio=50.0) == [3]
    assert find_massive_channels(x, ratio=50.1) == []
    assert find_massive_channels(x, ratio=37.0) == [3, 4]


def test_none_is_found_where_there_is_none() -> None:
    x = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    assert find_massive_channels(x) == []
    assert find_massive_channels(torch.zeros(1, 4, 4)) == []


def test_the_mean_is_over_images_too() -> None:
    x = torch.ones(2, 3, 8)
    x[0, :, 5] = 150.0
    assert find_massive_channels(x[:1]) == [5]
    assert find_massive_channels(x) == []  # mean 75.5
    assert find_massive_channels(x, ratio=75.5) == [5]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_saturated_streams_are_refused(value: float) -> None:
    x = torch.ones(1, 3, 4)
    x[0, 0, 0] = value
    with pytest.raises(InputError, match="finite"):
        find_massive_channels(x)
    with pytest.raises(InputError, match="token"):
        find_massive_channels(torch.zeros(1, 0, 4))
