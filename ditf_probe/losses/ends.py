"""One side of several pairs: descriptor maps of one grid, the keypoints on them, and cosines between the two."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ditf_probe.data.pairs import Side
from ditf_probe.geometry import Size, cell_centres, grid_coordinates, resize_points

_SHORTEST = 1e-12  # as in F.normalize


@dataclass(frozen=True)
class End:
    """One side of several pairs whose maps have one grid, with the keypoints visible in both images.

    Attributes:
        grid: (height, width) of the maps, in cells.
        cells: `(B, D, h * w)` descriptors, row-major.
        lengths: `(B, 1, h * w)` of the descriptors.
        places: `(B, K, 2)` keypoints (x, y), in cells; padded to one number.
        descriptors: `(B, K, D)` descriptors of length one at the keypoints.
        sizes: `(B, 2)` height and width of the original images, in pixels.
    """

    grid: Size
    cells: Tensor
    lengths: Tensor
    places: Tensor
    descriptors: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor], annotations: Sequence[tuple[Side, Tensor]]) -> "End":
        """Samples maps `(D, h, w)` of one grid at the keypoints that a mask `(K,)` leaves of each image."""
        stacked = torch.stack(list(maps))
        grid = (stacked.shape[2], stacked.shape[3])
        places = [grid_coordinates(side.keypoints[mask], side.size, grid) for side, mask in annotations]
        padded = pad_sequence(places, batch_first=True).to(stacked.device, stacked.dtype)
        sizes = stacked.new_tensor([side.size for side, _ in annotations])
        cells = stacked.flatten(2)
        return cls(grid, cells, lengths_of(cells), padded, sample_stacked(stacked, padded), sizes)

    def centres(self) -> Tensor:
        """`(h * w, 2)` places of the cells."""
        return cell_centres(self.grid, self.grid).to(self.places)

    def distances(self) -> Tensor:
        """`(B, K, h * w)` between keypoints and cells, in cells."""
        centres = self.centres().expand(len(self.places), -1, -1)
        # By way of a matrix product, as by default, short distances on large maps would be thousandths of a cell wrong.
        return torch.cdist(self.places, centres, compute_mode="donot_use_mm_for_euclid_dist")

    def cosines(self, queries: Tensor) -> Tensor:
        """`(B, Q, h * w)` of descriptors of length one, `(B, Q, D)`, with all cells."""
        return cosines(queries, self.cells, self.lengths)

    def mean_of_units(self, weights: Tensor) -> Tensor:
        """`(B, Q, D)` weighted sums of the cells' descriptors, each scaled to length one, under `(B, Q, h * w)`."""
        return weights / self.lengths @ self.cells.mT


def lengths_of(cells: Tensor) -> Tensor:
    """Lengths of descriptors, `(B, D, N)` to `(B, 1, N)`; never 0."""
    # By its parts, because on the CPU a norm over an axis that is not the last takes three times as long.
    return cells.square().sum(dim=1, keepdim=True).clamp_min(_SHORTEST**2).sqrt()


def cosines(queries: Tensor, cells: Tensor, lengths: Tensor) -> Tensor:
    """Cosines of descriptors with cells: products over lengths, which spares a map of normed descriptors and its graph.

    Args:
        queries: `(B, Q, D)` of length one.
        cells: `(B, D, N)` of any length.
        lengths: `(B, 1, N)` from `lengths_of`.

    Returns:
        `(B, Q, N)`.
    """
    return queries @ cells / lengths


def sample_stacked(maps: Tensor, places: Tensor) -> Tensor:
    """Unit descriptors of points on maps of one grid: what `matching.sample_descriptors` gives map by map, at once.

    A loop over maps would take longer than the rest of a training step on small features.

    Args:
        maps: `(B, D, h, w)`.
        places: `(B, K, 2)` (x, y) in cells, from -0.5 to the number of cells - 0.5.

    Returns:
        `(B, K, D)` of length one.
    """
    # What grid_sample calls a place: a two pixel wide image whose centre is the origin.
    scaled = (resize_points(places, maps.shape[2:], (2, 2)) - 0.5).to(maps.dtype)
    found = F.grid_sample(maps, scaled[:, None], padding_mode="border", align_corners=False)[:, :, 0]
    return F.normalize(found.transpose(1, 2), dim=2)
