"""Data sets of image pairs with keypoints. Names load on first use, so that importing costs nothing."""

from typing import TYPE_CHECKING

from ditf_probe.lazy import lazy

if TYPE_CHECKING:
    from ditf_probe.data.ap10k import AP10K as AP10K
    from ditf_probe.data.ap10k_geoaware import AP10KGeoAware as AP10KGeoAware
    from ditf_probe.data.coco import COCOKeypoints as COCOKeypoints
    from ditf_probe.data.cub import CUB200 as CUB200
    from ditf_probe.data.datamodule import PairDataModule as PairDataModule
    from ditf_probe.data.davis import DAVIS as DAVIS
    from ditf_probe.data.flipped import Flipped as Flipped
    from ditf_probe.data.hpatches import HPatches as HPatches
    from ditf_probe.data.own import KeypointFolder as KeypointFolder
    from ditf_probe.data.pairs import Pair as Pair
    from ditf_probe.data.pairs import PairDataset as PairDataset
    from ditf_probe.data.pairs import Side as Side
    from ditf_probe.data.pairs import threshold_base as threshold_base
    from ditf_probe.data.pascal import PFPascal as PFPascal
    from ditf_probe.data.per_category import Fraction as Fraction
    from ditf_probe.data.planar import PlanarDataModule as PlanarDataModule
    from ditf_probe.data.spair import SPair71k as SPair71k
    from ditf_probe.data.stereo import StereoMotorcycle as StereoMotorcycle
    from ditf_probe.data.subsets import HeldOut as HeldOut
    from ditf_probe.data.synthetic import SyntheticPairs as SyntheticPairs
    from ditf_probe.data.tss import TSS as TSS
    from ditf_probe.data.videos import VideoDataModule as VideoDataModule
    from ditf_probe.data.warped import WarpedPhotos as WarpedPhotos
    from ditf_probe.data.willow import PFWillow as PFWillow

_MODULES = {
    "AP10K": "ap10k",
    "AP10KGeoAware": "ap10k_geoaware",
    "COCOKeypoints": "coco",
    "CUB200": "cub",
    "DAVIS": "davis",
    "Flipped": "flipped",
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

__all__ = [*_MODULES]
__getattr__, __dir__ = lazy(__name__, _MODULES)
