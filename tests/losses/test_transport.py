"""Transport plans: masses, optimality, and what they are with much room."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from ditf_probe.data.pairs import Pair, Side
from ditf_probe.errors import InputError
from ditf_probe.losses import GaussianCrossEntropy, OptimalTransport, log_sinkhorn
from ditf_probe.losses.searching import together as together_ends

Draw = Callable[..., tuple[list[Tensor], list[Tensor], list[Pair]]]


def masses(generator: torch.Generator, *shape: int) -> Tensor:
    drawn = torch.rand(*shape, generator=generator, dtype=torch.float64) + 0.1
    return drawn / drawn.sum(dim=-1, keepdim=True)


def test_plans_send_and_take_the_masses() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        scores = 3 * torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
        rows, columns = masses(generator, 2, 4), masses(generator, 2, 6)
        plan = log_sinkhorn(scores, rows.log(), columns.log(), 300).exp()
        torch.testing.assert_close(plan.sum(dim=2), rows)
        torch.testing.assert_close(plan.sum(dim=1), columns, atol=1e-6, rtol=0)


def test_plans_are_optimal() -> None:
    """The plan maximises <plan, scores> + entropy; its value is that of the dual, found by a general optimiser."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        scores = 2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
        rows, columns = masses(generator, 3), masses(generator, 4)
        plan = log_sinkhorn(scores, rows.log(), columns.log(), 300).exp()
        value = float((plan * (scores - plan.log())).sum())

        def dual(potentials: np.ndarray, s: Tensor = scores, a: Tensor = rows, b: Tensor = columns) -> float:
            f, g = potentials[:3], potentials[3:]
            powers = np.exp(s.numpy() - f[:, None] - g[None, :] - 1).sum()
            return float(f @ a.numpy() + g @ b.numpy() + powers)

        found = minimize(dual, np.zeros(7), method="BFGS", options={"gtol": 1e-7})
        assert value == pytest.approx(found.fun, abs=1e-6)


def test_no_iteration_is_a_softmax_and_empty_rows_stay_empty() -> None:
    scores = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows, columns = torch.tensor([0.0, -torch.inf, math.log(4.0)]).double(), torch.zeros(5).double()
    torch.testing.assert_close(log_sinkhorn(scores, rows, columns, 0)[0], scores[0].log_softmax(dim=0))
    plan = log_sinkhorn(scores, rows, columns, 200).exp()
    assert not plan[1].any()
    torch.testing.assert_close(plan.sum(dim=0), torch.ones(5).double())


def test_scores_beyond_the_reach_of_exponentials_are_no_trouble() -> None:
    scores = torch.tensor([[900.0, 0.0], [0.0, -900.0]], requires_grad=True)
    plan = log_sinkhorn(scores, torch.zeros(2), torch.zeros(2), 10)
    assert plan.isfinite().all()
    plan.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_much_room_is_a_softmax_for_each_keypoint(draw: Draw) -> None:
    for seed in range(20):
        batch = draw(seed)
        torch.testing.assert_close(
            OptimalTransport(1e9, sigma=0.8)(*batch), GaussianCrossEntropy(0.8)(*batch), atol=1e-5, rtol=0
        )


def twins() -> tuple[list[Tensor], list[Tensor], list[Pair]]:
    """Two keypoints that are both most like the first of three cells; the partner of the second is the second one."""
    source = torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.436, 1.0]])[:, None]
    target = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.866, 1.0]])[:, None]
    seen, box = torch.tensor([True, True]), torch.tensor([0.0, 0.0, 2.0, 0.0])
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    pair = Pair(0, "cat", "0", Side("a", (1, 3), points, seen, box), Side("b", (1, 3), points, seen, box))
    return [source], [target], [pair]


def test_keypoints_compete_for_cells() -> None:
    alone = float(GaussianCrossEntropy(0.01, 0.1, symmetric=False)(*twins()).detach())
    together = float(OptimalTransport(1.0, 50, 0.01, 0.1, symmetric=False)(*twins()).detach())
    # The first keypoint fills the first cell, which leaves the next one to the second.
    assert together < 0.8 * alone
    ((source, target, seen),) = together_ends(*twins())
    term = OptimalTransport(1.0, 50, temperature=0.1)
    assert term.logits(source, target).argmax(dim=2).tolist() == [[0, 0]]
    assert term.plan(source, target, seen).argmax(dim=2).tolist() == [[0, 1]]


def test_keypoints_must_fit() -> None:
    with pytest.raises(InputError, match=r"`capacity` is 0.5: give more, 2 keypoints must fit into 3 cells"):
        OptimalTransport(0.5)(*twins())
    with pytest.raises(InputError, match="capacity"):
        OptimalTransport(2 / 3)(*twins())  # leaves nothing for the rest of the image
