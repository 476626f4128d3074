"""Data sets of image pairs with keypoints. Names load on first use, so that importing costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditf_probe.data.ap10k import AP10K
    from ditf_probe.data.ap10k_geoaware import AP10KGeoAware
    from ditf_probe.data.coco import COCOKeypoints
    from ditf_probe.data.datamodule import PairDataModule
    from ditf_probe.data.own import KeypointFolder
    from ditf_probe.data.pairs import Pair, PairDataset, Side, threshold_base
    from ditf_probe.data.stereo import StereoMotorcycle
    from ditf_probe.data.synthetic import SyntheticPairs
    from ditf_probe.data.warped import WarpedPhotos
    from ditf_probe.data.willow import PFWillow

__all__ = [
    "AP10K",
    "AP10KGeoAware",
    "COCOKeypoints",
    "KeypointFolder",
    "PFWillow",
    "Pair",
    "PairDataModule",
    "PairDataset",
    "Side",
    "StereoMotorcycle",
    "SyntheticPairs",
    "WarpedPhotos",
    "threshold_base",
]

_MODULES = {
    "AP10K": "ap10k",
    "AP10KGeoAware": "ap10k_geoaware",
    "COCOKeypoints": "coco",
    "KeypointFolder": "own",
    "PFWillow": "willow",
    "Pair": "pairs",
    "PairDataModule": "datamodule",
    "PairDataset": "pairs",
    "Side": "pairs",
    "StereoMotorcycle": "stereo",
    "SyntheticPairs": "synthetic",
    "WarpedPhotos": "warped",
    "threshold_base": "pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
