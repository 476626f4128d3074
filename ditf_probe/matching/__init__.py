"""Exact nearest neighbours between feature maps, at full image resolution."""

from ditf_probe.matching.keypoints import Rounding, match_keypoints, sample_descriptors, similarity_maps
from ditf_probe.matching.mutual import mutual_nearest_neighbours

__all__ = ["Rounding", "match_keypoints", "mutual_nearest_neighbours", "sample_descriptors", "similarity_maps"]
