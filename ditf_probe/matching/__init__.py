"""Exact nearest neighbours between feature maps, at full image resolution."""

from ditf_probe.matching.keypoints import Rounding, match_keypoints, sample_descriptors, similarity_maps

__all__ = ["Rounding", "match_keypoints", "sample_descriptors", "similarity_maps"]
