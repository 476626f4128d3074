"""Dense visual correspondence with frozen diffusion transformers.

The public names load on first use, so that `import ditf_probe` costs next to nothing.
"""

from typing import TYPE_CHECKING

from ditf_probe.lazy import lazy

__version__ = "0.1.0"

_HOME = {
    "Backbone": "backbones.base",
    "BottleneckProbe": "probes.bottleneck",
    "ChannelGate": "probes.gate",
    "FeatureExtractor": "features.extractor",
    "InputError": "errors",
    "KeypointAveragePrecision": "metrics.average_precision",
    "LayerAggregation": "probes.aggregation",
    "LinearProbe": "probes.linear",
    "LowRankAdapter": "probes.low_rank",
    "MatchingRule": "matching",
    "PFWillow": "data.willow",
    "Pair": "data.pairs",
    "PairDataModule": "data.datamodule",
    "PairDataset": "data.pairs",
    "PercentageCorrectKeypoints": "metrics.pck",
    "ProbedBackbone": "inference.probed",
    "PromptEmbeddings": "conditions",
    "PromptEncoder": "backbones.prompts",
    "Protocol": "protocols",
    "StereoMotorcycle": "data.stereo",
    "SyntheticPairs": "data.synthetic",
    "TimestepAggregation": "probes.timesteps",
    "WarpedPhotos": "data.warped",
    "discard_channels": "features.modulation",
    "find_massive_channels": "features.modulation",
    "load_backbone": "backbones.loading",
    "load_features": "inference.features",
    "match_by_rule": "matching",
    "match_keypoints": "matching",
    "modulate": "features.modulation",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from ditf_probe.backbones.base import Backbone as Backbone
    from ditf_probe.backbones.loading import load_backbone as load_backbone
    from ditf_probe.backbones.prompts import PromptEncoder as PromptEncoder
    from ditf_probe.conditions import PromptEmbeddings as PromptEmbeddings
    from ditf_probe.data.datamodule import PairDataModule as PairDataModule
    from ditf_probe.data.pairs import Pair as Pair
    from ditf_probe.data.pairs import PairDataset as PairDataset
    from ditf_probe.data.stereo import StereoMotorcycle as StereoMotorcycle
    from ditf_probe.data.synthetic import SyntheticPairs as SyntheticPairs
    from ditf_probe.data.warped import WarpedPhotos as WarpedPhotos
    from ditf_probe.data.willow import PFWillow as PFWillow
    from ditf_probe.errors import InputError as InputError
    from ditf_probe.features.extractor import FeatureExtractor as FeatureExtractor
    from ditf_probe.features.modulation import discard_channels as discard_channels
    from ditf_probe.features.modulation import find_massive_channels as find_massive_channels
    from ditf_probe.features.modulation import modulate as modulate
    from ditf_probe.inference.features import load_features as load_features
    from ditf_probe.inference.probed import ProbedBackbone as ProbedBackbone
    from ditf_probe.matching import MatchingRule as MatchingRule
    from ditf_probe.matching import match_by_rule as match_by_rule
    from ditf_probe.matching import match_keypoints as match_keypoints
    from ditf_probe.metrics.average_precision import KeypointAveragePrecision as KeypointAveragePrecision
    from ditf_probe.metrics.pck import PercentageCorrectKeypoints as PercentageCorrectKeypoints
    from ditf_probe.probes.aggregation import LayerAggregation as LayerAggregation
    from ditf_probe.probes.bottleneck import BottleneckProbe as BottleneckProbe
    from ditf_probe.probes.gate import ChannelGate as ChannelGate
    from ditf_probe.probes.linear import LinearProbe as LinearProbe
    from ditf_probe.probes.low_rank import LowRankAdapter as LowRankAdapter
    from ditf_probe.probes.timesteps import TimestepAggregation as TimestepAggregation
    from ditf_probe.protocols import Protocol as Protocol

__getattr__, __dir__ = lazy(__name__, _HOME)
