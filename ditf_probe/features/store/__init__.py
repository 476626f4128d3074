"""Tapped streams on disk: computed once, by anyone, for every run with the same definition of features."""

from ditf_probe.features.store.feature_store import FeatureStore
from ditf_probe.features.store.manifest import definition_of

__all__ = ["FeatureStore", "definition_of"]
