"""Features and trained probes as plain callables, outside of Lightning."""

from ditf_probe.inference.features import DenseFeatures, load_features
from ditf_probe.inference.probed import ProbedBackbone

__all__ = ["DenseFeatures", "ProbedBackbone", "load_features"]
