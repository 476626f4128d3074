"""Exact nearest neighbours between feature maps, at full image resolution, and the matching rules of the field."""

from ditf_probe.matching.by_rule import match_by_rule, match_prepared
from ditf_probe.matching.dense import DenseMatches, match_dense
from ditf_probe.matching.keypoints import Rounding, match_keypoints, sample_descriptors, similarity_maps
from ditf_probe.matching.mutual import mutual_nearest_neighbours
from ditf_probe.matching.prepared import PreparedMap
from ditf_probe.matching.rules import MatchingRule

__all__ = [
    "DenseMatches",
    "MatchingRule",
    "PreparedMap",
    "Rounding",
    "match_by_rule",
    "match_dense",
    "match_keypoints",
    "match_prepared",
    "mutual_nearest_neighbours",
    "sample_descriptors",
    "similarity_maps",
]
