"""Data sets of image pairs with keypoints. Names load on first use, so that importing costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditf_probe.data.datamodule import PairDataModule
    from ditf_probe.data.hpatches import HPatches
    from ditf_probe.data.pairs import Pair, PairDataset, Side, threshold_base
    from ditf_probe.data.planar import PlanarDataModule
    from ditf_probe.data.stereo import StereoMotorcycle
    from ditf_probe.data.synthetic import SyntheticPairs
    from ditf_probe.data.warped import WarpedPhotos
    from ditf_probe.data.willow import PFWillow

__all__ = [
    "HPatches",
    "PFWillow",
    "Pair",
    "PairDataModule",
    "PairDataset",
    "PlanarDataModule",
    "Side",
    "StereoMotorcycle",
    "SyntheticPairs",
    "WarpedPhotos",
    "threshold_base",
]

_MODULES = {
    "HPatches": "hpatches",
    "PFWillow": "willow",
    "Pair": "pairs",
    "PairDataModule": "datamodule",
    "PairDataset": "pairs",
    "PlanarDataModule": "planar",
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
