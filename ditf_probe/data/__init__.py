"""Data sets of pairs with keypoints, and of videos. Names load on first use, so that importing costs nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditf_probe.data.datamodule import PairDataModule
    from ditf_probe.data.davis import DAVIS
    from ditf_probe.data.pairs import Pair, PairDataset, Side, threshold_base
    from ditf_probe.data.stereo import StereoMotorcycle
    from ditf_probe.data.synthetic import SyntheticPairs
    from ditf_probe.data.videos import VideoDataModule
    from ditf_probe.data.warped import WarpedPhotos
    from ditf_probe.data.willow import PFWillow

__all__ = [
    "DAVIS",
    "PFWillow",
    "Pair",
    "PairDataModule",
    "PairDataset",
    "Side",
    "StereoMotorcycle",
    "SyntheticPairs",
    "VideoDataModule",
    "WarpedPhotos",
    "threshold_base",
]

_MODULES = {
    "DAVIS": "davis",
    "PFWillow": "willow",
    "Pair": "pairs",
    "PairDataModule": "datamodule",
    "PairDataset": "pairs",
    "Side": "pairs",
    "StereoMotorcycle": "stereo",
    "SyntheticPairs": "synthetic",
    "VideoDataModule": "videos",
    "WarpedPhotos": "warped",
    "threshold_base": "pairs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
