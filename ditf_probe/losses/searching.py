"""Terms that look at where each keypoint is found on the whole map of the other image."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ditf_probe.data.pairs import Pair
from ditf_probe.losses.ends import End
from ditf_probe.losses.terms import Extras, Term, check_positive


class SearchTerm(Term):
    """A term with one loss per keypoint and direction, from the map that the keypoint is searched on.

    A subclass fills `each`. Pairs whose maps have the same two grids are computed at once. All keypoints of a batch
    weigh the same.

    Args:
        temperature: As in `Term`.
        learn_temperature: As in `Term`.
        symmetric: Whether keypoints of the target are searched in the source too; else only those of the source in the
            target, as matching does, and maps of sources are not needed whole.

    Attributes:
        way_back: Whether the map where a keypoint is given is searched in either case.
    """

    way_back: bool = False

    def __init__(self, temperature: float, learn_temperature: bool, symmetric: bool) -> None:
        super().__init__(temperature, learn_temperature)
        self.symmetric = symmetric
        if not (symmetric or self.way_back):
            self.needs = self.needs - {"source_maps"}

    def compute(self, sources: list[Tensor], targets: list[Tensor], pairs: list[Pair], extras: Extras) -> Tensor:
        """The mean over keypoints and directions; see `Term.forward`."""
        del extras
        losses = []
        for source, target, seen in together(sources, targets, pairs):
            losses.append(self.each(source, target, seen)[seen])
            if self.symmetric:
                losses.append(self.each(target, source, seen)[seen])
        return torch.cat(losses).mean()

    @abstractmethod
    def each(self, near: End, far: End, seen: Tensor) -> Tensor:
        """The loss of each keypoint of `near`, whose partner in `far` has the same row.

        Args:
            near: The side whose keypoints are given.
            far: The side that is searched.
            seen: `(B, K)` bool, False where rows are padding. What is returned for those is not looked at.

        Returns:
            `(B, K)`.
        """

    def logits(self, near: End, far: End) -> Tensor:
        """`(B, K, h * w)` cosines of keypoints with all cells of the searched map, divided by the temperature."""
        return far.cosines(near.descriptors) / self.temperature


class GaussianTerm(SearchTerm):
    """A term whose target is a Gaussian around a keypoint.

    Args:
        sigma: Standard deviation of the Gaussian, in cells; at least 0.01, where it still has a maximum in floating
            point.
        temperature: As in `Term`.
        learn_temperature: As in `Term`.
        symmetric: As in `SearchTerm`.

    Raises:
        InputError: A number out of range.
    """

    def __init__(
        self, sigma: float = 1.0, temperature: float = 0.07, learn_temperature: bool = True, symmetric: bool = True
    ) -> None:
        super().__init__(temperature, learn_temperature, symmetric)
        check_positive("sigma", sigma, 0.01)
        self.sigma = sigma

    def gaussians(self, end: End) -> Tensor:
        """Gaussians around the keypoints of a side, one distribution over the cells of its map each.

        A small `sigma` leaves the cell that the keypoint lies in.

        Returns:
            `(B, K, h * w)`, non-negative with sum 1 over the cells.
        """
        return (-0.5 * (end.distances() / self.sigma).square()).softmax(dim=2)


def together(
    sources: Sequence[Tensor], targets: Sequence[Tensor], pairs: Sequence[Pair]
) -> Iterator[tuple[End, End, Tensor]]:
    """Both sides of the pairs that have the same two grids, and `(B, K)` bool, which rows are keypoints."""
    for members in by_grids(sources, targets).values():
        chosen = [pairs[i] for i in members]
        source = End.of([sources[i] for i in members], [(pair.source, pair.visible) for pair in chosen])
        target = End.of([targets[i] for i in members], [(pair.target, pair.visible) for pair in chosen])
        counts = torch.tensor([int(pair.visible.sum()) for pair in chosen])
        seen = torch.arange(int(counts.max())) < counts[:, None]
        yield source, target, seen.to(source.cells.device)


def by_grids(*sides: Sequence[Tensor]) -> dict[tuple[torch.Size, ...], list[int]]:
    """Which pairs have maps of the same shapes on every side."""
    groups: dict[tuple[torch.Size, ...], list[int]] = {}
    for number, maps in enumerate(zip(*sides, strict=True)):
        groups.setdefault(tuple(features.shape for features in maps), []).append(number)
    return groups
