"""Exact nearest neighbours between feature maps, at full image resolution."""

from ditf_probe.matching.dense import DenseMatches, match_dense
from ditf_probe.matching.keypoints import Rounding, match_keypoints, sample_descriptors, similarity_maps
from ditf_probe.matching.mutual import mutual_nearest_neighbours

__all__ = [
    "DenseMatches",
    "Rounding",
    "match_dense",
    "match_keypoints",
    "mutual_nearest_neighbours",
    "sample_descriptors",
    "similarity_maps",
]
