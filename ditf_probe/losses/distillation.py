"""What a probe has not been taught should stay as the features had it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.data.pairs import Pair
from ditf_probe.errors import InputError
from ditf_probe.losses.searching import by_grids
from ditf_probe.losses.terms import MAPS, Extras, Need, Term, checked


class SelfDistillation(Term):
    """Divergence of the probe's matches from the zero-shot matches of the same features, over cells of any kind.

    For cells of one image, drawn anew each time, the softmax of cosines with all cells of the other one is compared
    between probe and zero-shot features by the Kullback-Leibler divergence, in both directions of the pair. Annotations
    play no part: it is what holds keypoints and categories that no annotation names. It is 0 for a probe that keeps all
    cosines, and pulls against the terms that teach, so it wants a small weight.

    Distillation by softened outputs: Hinton et al., arXiv 1503.02531, equation 1; towards the own beginning, as a guard
    against forgetting: Li and Hoiem, ECCV 2016.

    Args:
        queries: At most so many cells of each image are looked at.
        teacher_temperature: Zero-shot cosines are divided by this, from 0.01 to 1.
        temperature: Cosines of the probe are divided by this; where it starts if it is learnt.
        learn_temperature: Whether the temperature is a parameter, kept between 0.01 and 1.

    Raises:
        InputError: A number out of range.
    """

    needs: frozenset[Need] = MAPS | {"zero_shot"}

    def __init__(
        self,
        queries: int = 256,
        teacher_temperature: float = 0.07,
        temperature: float = 0.07,
        learn_temperature: bool = False,
    ) -> None:
        super().__init__(temperature, learn_temperature)
        if queries < 1:
            raise InputError("queries", queries, "give a number of cells, at least 1")
        if not 0.01 <= teacher_temperature <= 1:
            raise InputError("teacher_temperature", teacher_temperature, "give a number from 0.01 to 1")
        self.queries, self.teacher_temperature = queries, teacher_temperature

    def compute(self, sources: list[Tensor], targets: list[Tensor], pairs: list[Pair], extras: Extras) -> Tensor:
        """The mean over cells and directions; see `Term.forward`."""
        if extras.source_zero_shot is None or extras.target_zero_shot is None:
            raise InputError("extras", None, "give the zero-shot maps of both sides, SelfDistillation needs them")
        sides = sources, targets, extras.source_zero_shot, extras.target_zero_shot
        losses = []
        for members in by_grids(*sides).values():
            source, target, old_source, old_target = ([maps[i] for i in members] for maps in sides)
            near, far = _cells(source), _cells(target)
            grids = source[0].shape[1:], target[0].shape[1:]
            with torch.no_grad():
                old_near, old_far = _cells(old_source, grids[0]), _cells(old_target, grids[1])
            losses.append(self._divergence(near, far, old_near, old_far).flatten())
            losses.append(self._divergence(far, near, old_far, old_near).flatten())
        return torch.cat(losses).mean()

    def _divergence(self, near: Tensor, far: Tensor, old_near: Tensor, old_far: Tensor) -> Tensor:
        """`(B, Q)` over cells of `near`, from the unit descriptors `(B, D, h * w)` of both sides, now and before."""
        count = near.shape[2]
        if count > self.queries:
            # Drawn on the CPU, whose generator a checkpoint keeps.
            drawn = torch.rand(len(near), count).argsort(dim=1)[:, None, : self.queries].to(near.device)
            near, old_near = near.take_along_dim(drawn, dim=2), old_near.take_along_dim(drawn, dim=2)
        student = (near.mT @ far / self.temperature).log_softmax(dim=2)
        with torch.no_grad():
            teacher = (old_near.mT @ old_far / self.teacher_temperature).log_softmax(dim=2)
        return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=2)


def _cells(maps: list[Tensor], grid: torch.Size | None = None) -> Tensor:
    """Unit descriptors of the cells, `(B, D, h * w)`, of the maps as they are or interpolated to a grid."""
    stacked = torch.stack(checked(maps, "zero_shot"))
    if grid is not None and stacked.shape[2:] != grid:
        stacked = F.interpolate(stacked, size=tuple(grid), mode="bilinear", align_corners=False)
    return F.normalize(stacked.flatten(2), dim=1)
