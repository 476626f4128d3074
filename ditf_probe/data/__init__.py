"""Data sets of image pairs with keypoints. Names load on first use, so that importing costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditf_probe.data.ap10k import AP10K
    from ditf_probe.data.ap10k_geoaware import AP10KGeoAware
    from ditf_probe.data.coco import COCOKeypoints
    from ditf_probe.data.cub import CUB200
    from ditf_probe.data.datamodule import PairDataModule
    from ditf_probe.data.davis import DAVIS
    from ditf_probe.data.hpatches import HPatches
    from ditf_probe.data.own import KeypointFolder
    from ditf_probe.data.pairs import Pair, PairDataset, Side, threshold_base
    from ditf_probe.data.pascal import PFPascal
    from ditf_probe.data.per_category import Fraction
    from ditf_probe.data.planar import PlanarDataModule
    from ditf_probe.data.spair import SPair71k
    from ditf_probe.data.stereo import StereoMotorcycle
    from ditf_probe.data.subsets import HeldOut
    from ditf_probe.data.synthetic import SyntheticPairs
    from ditf_probe.data.tss import TSS
    from ditf_probe.data.videos import VideoDataModule
    from ditf_probe.data.warped import WarpedPhotos
    from ditf_probe.data.willow import PFWillow

__all__ = [
    "AP10K",
    "CUB200",
    "DAVIS",
    "TSS",
    "AP10KGeoAware",
    "COCOKeypoints",
    "Fraction",
    "HPatches",
    "HeldOut",
    "KeypointFolder",
    "PFPascal",
    "PFWillow",
    "Pair",
    "PairDataModule",
    "PairDataset",
    "PlanarDataModule",
    "SPair71k",
    "Side",
    "StereoMotorcycle",
    "SyntheticPairs",
    "VideoDataModule",
    "WarpedPhotos",
    "threshold_base",
]

_MODULES = {
    "AP10K": "ap10k",
    "AP10KGeoAware": "ap10k_geoaware",
    "COCOKeypoints": "coco",
    "CUB200": "cub",
    "DAVIS": "davis",
    "Fraction": "per_category",
    "HeldOut": "subsets",
    "HPatches": "hpatches",
    "KeypointFolder": "own",
    "Pair": "pairs",
    "PairDataModule": "datamodule",
    "PairDataset": "pairs",
    "PFPascal": "pascal",
    "PFWillow": "willow",
    "PlanarDataModule": "planar",
    "Side": "pairs",
    "SPair71k": "spair",
    "StereoMotorcycle": "stereo",
    "SyntheticPairs": "synthetic",
    "threshold_base": "pairs",
    "TSS": "tss",
    "VideoDataModule": "videos",
    "WarpedPhotos": "warped",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
