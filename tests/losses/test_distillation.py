"""Divergence from the zero-shot matches, against loops over cells."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError
from ditf_probe.losses import Extras, SelfDistillation

Draw = Callable[..., tuple[list[Tensor], list[Tensor], list[Pair]]]


def softmax_row(near: Tensor, far: Tensor, row: int, temperature: float) -> list[float]:
    """Shares of the cells of a map in the matches of one cell of another."""
    query = near.flatten(1)[:, row]
    cosines = [float(query @ cell / (query.norm() * cell.norm())) for cell in far.flatten(1).T]
    powers = [math.exp(cosine / temperature) for cosine in cosines]
    return [power / sum(powers) for power in powers]


def slow(near: Tensor, far: Tensor, old_near: Tensor, old_far: Tensor) -> list[float]:
    """Divergence of each cell; teacher at 0.2, student at 0.1."""
    losses = []
    for row in range(near[0].numel()):
        found = softmax_row(near, far, row, 0.1)
        wanted = softmax_row(old_near, old_far, row, 0.2)
        losses.append(sum(p * math.log(p / q) for p, q in zip(wanted, found, strict=True)))
    return losses


def zero_shot(draw: Draw, seed: int) -> tuple[list[Tensor], list[Tensor], list[Pair], Extras]:
    """A batch and the features that its maps were made of: another width, the same grids."""
    a, b, pairs = draw(seed, count=2)
    mix = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    old = [[torch.einsum("ed,dhw->ehw", mix, m) + 0.3 * m.mean() for m in maps] for maps in (a, b)]
    return a, b, pairs, Extras(*old)


def test_equals_loops_over_cells(draw: Draw) -> None:
    term = SelfDistillation(teacher_temperature=0.2, temperature=0.1)
    for seed in range(50):
        a, b, pairs, extras = zero_shot(draw, seed)
        assert extras.source_zero_shot is not None
        assert extras.target_zero_shot is not None
        losses = []
        for maps in zip(a, b, extras.source_zero_shot, extras.target_zero_shot, strict=True):
            source, target, old_source, old_target = maps
            losses += slow(source, target, old_source, old_target) + slow(target, source, old_target, old_source)
        assert float(term(a, b, pairs, extras).detach()) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_value_by_hand() -> None:
    """One cell looks at two; shares e / (1 + e) and 1 / (1 + e) against the reverse: 0.731059 - 0.268941."""
    near, far = torch.tensor([1.0, 0.0])[:, None, None], torch.eye(2)[:, None]
    extras = Extras([near], [far.flip(2)])
    term = SelfDistillation(teacher_temperature=1.0, temperature=1.0)
    # The other direction is 0: each of the two cells has but one to choose. Three cells in all.
    pair = object()
    assert float(term([near], [far], [pair], extras).detach()) == pytest.approx(0.462117 / 3, abs=1e-6)


def test_unchanged_features_cost_nothing(draw: Draw) -> None:
    a, b, pairs = draw(1)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    turned = [[torch.einsum("ed,dhw->ehw", turn, 2.5 * m) for m in maps] for maps in (a, b)]
    assert float(SelfDistillation()(*turned, pairs, Extras(a, b)).detach()) == pytest.approx(0, abs=1e-7)


def test_annotations_play_no_part(draw: Draw) -> None:
    a, b, pairs, extras = zero_shot(draw, 2)
    term = SelfDistillation()
    first = term(a, b, pairs, extras)
    for pair in pairs:
        pair.source.visible[:] = False
    assert first > 0
    assert torch.equal(term(a, b, pairs, extras), first)


def test_gradients_reach_maps_and_temperature_but_not_the_features(draw: Draw) -> None:
    a, b, pairs, extras = zero_shot(draw, 3)
    term = SelfDistillation(learn_temperature=True).double()
    inputs = [m.requires_grad_() for m in (*a, *b)]

    def value(*given: Tensor) -> Tensor:
        result: Tensor = term(given[:2], given[2:4], pairs, extras)
        return result

    assert torch.autograd.gradcheck(value, (*inputs, term.log_temperature), fast_mode=True)
    old = extras.source_zero_shot
    assert old is not None
    old[0].requires_grad_()
    value(*inputs).backward()
    assert old[0].grad is None
    assert term.log_temperature.grad is not None
    assert term.log_temperature.grad != 0


def test_few_cells_stand_for_all(draw: Draw) -> None:
    a, b, pairs, extras = zero_shot(draw, 4)
    torch.manual_seed(0)
    term = SelfDistillation(queries=3)
    drawn = torch.stack([term(a, b, pairs, extras).detach() for _ in range(200)])
    assert len(drawn.unique()) > 100
    # Each cell of an image is drawn as often; images weigh alike, whatever their number of cells.
    single = [
        term(a[i : i + 1], b[i : i + 1], pairs[i : i + 1], extras.take([i])).detach()
        for i in range(2)
        for _ in range(200)
    ]
    assert float(drawn.mean()) == pytest.approx(float(torch.stack(single).mean()), rel=0.05)
    torch.manual_seed(7)
    first = term(a, b, pairs, extras)
    torch.manual_seed(7)
    assert torch.equal(term(a, b, pairs, extras), first)


def test_features_come_to_the_grid_of_the_probe(draw: Draw) -> None:
    a, b, pairs = draw(5)
    fine = [[F.interpolate(m[None], scale_factor=2, mode="bilinear")[0] for m in maps] for maps in (a, b)]
    assert float(SelfDistillation()(*fine, pairs, Extras(a, b)).detach()) == pytest.approx(0, abs=1e-7)


def test_bad_input_is_named(draw: Draw) -> None:
    a, b, pairs, extras = zero_shot(draw, 6)
    with pytest.raises(InputError, match="SelfDistillation needs them"):
        SelfDistillation()(a, b, pairs)
    with pytest.raises(InputError, match="`target_zero_shot` is '1 maps'"):
        SelfDistillation()(a, b, pairs, Extras(extras.source_zero_shot, (extras.target_zero_shot or [])[:1]))
    a[1] = a[1] * torch.nan
    with pytest.raises(InputError, match="`zero_shot` is 'NaN or infinity'"):
        SelfDistillation()(b, b, pairs, Extras(a, b))
    for arguments in ({"queries": 0}, {"teacher_temperature": 0.0}, {"temperature": 3.0}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            SelfDistillation(**arguments)  # type: ignore[arg-type]
