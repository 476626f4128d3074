"""Muon for the hidden matrices and AdamW for everything else, as one optimiser.

One optimiser, because Lightning counts a global step per optimiser step; in the precision of the gradients,
because `torch.optim.Muon` computes in bfloat16, which processors without bfloat16 units do about 100 times slower.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Brings all singular values close to 1 by a quintic Newton-Schulz iteration (Jordan et al., Muon, 2024).

    Args:
        matrices: `(B, m, n)`.
        steps: Iterations.

    Returns:
        `(B, m, n)`; singular values between about 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(Optimizer):
    """Muon on the groups marked `muon`, AdamW on the others.

    Muon's steps are scaled by 0.2 sqrt(max(m, n)), so that both share one learning rate (Liu et al. 2025, section 2.2).

    Args:
        groups: Parameter groups; key `muon` (bool) marks matrices `(m, n)` for Muon.
        lr: Learning rate.
        momentum: Nesterov momentum of Muon.
        betas: Of AdamW.
        weight_decay: Decoupled, for matrices only.
        eps: Of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["muon"] else self._adamw)(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = gradients_of(parameters)
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape = defaultdict(list)
        for parameter, update in zip(parameters, updates, strict=True):
            by_shape[parameter.shape].append((parameter, update))
        for shape, members in by_shape.items():
            length = 0.2 * max(shape) ** 0.5 * group["lr"]
            orthogonal = orthogonalise(torch.stack([update for _, update in members]))
            torch._foreach_sub_([parameter for parameter, _ in members], list(orthogonal.mul_(length)))

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        first_decay, second_decay = group["betas"]
        gradients = gradients_of(parameters)
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = (torch.zeros_like(parameter) for _ in range(2))
                self.state[parameter].update(step=0, **dict(zip(("first", "second"), zeros, strict=True)))
            self.state[parameter]["step"] += 1
        states = [self.state[parameter] for parameter in parameters]
        firsts, seconds = ([state[name] for state in states] for name in ("first", "second"))
        torch._foreach_lerp_(firsts, gradients, 1 - first_decay)
        torch._foreach_lerp_(seconds, torch._foreach_mul(gradients, gradients), 1 - second_decay)
        sizes = torch._foreach_sqrt(seconds)
        torch._foreach_div_(sizes, [(1 - second_decay ** state["step"]) ** 0.5 for state in states])
        torch._foreach_add_(sizes, group["eps"])
        matrices = [parameter for parameter in parameters if parameter.ndim > 1]
        if matrices:
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        lengths = [-group["lr"] / (1 - first_decay ** state["step"]) for state in states]
        torch._foreach_addcdiv_(parameters, firsts, sizes, lengths)


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon updates this parameter: the matrices of attention and MLP, not embeddings, modulation or output."""
    return parameter.ndim == 2 and "blocks." in name and "norm" not in name
