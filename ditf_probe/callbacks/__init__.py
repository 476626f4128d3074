"""What happens beside a test: pictures of its matches and masks, and dense matches as files."""

from ditf_probe.callbacks.dense import DenseMatches
from ditf_probe.callbacks.masks import MaskPictures
from ditf_probe.callbacks.pictures import MatchPictures, spread

__all__ = ["DenseMatches", "MaskPictures", "MatchPictures", "spread"]
