"""Lightning modules: what is trained or evaluated, one per job. Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditf_probe.tasks.ablation import AblationTask
    from ditf_probe.tasks.correspondence import CorrespondenceTask
    from ditf_probe.tasks.extraction import ExtractionTask
    from ditf_probe.tasks.planar import HomographyTask
    from ditf_probe.tasks.probe import ProbeTask
    from ditf_probe.tasks.propagation import PropagationTask
    from ditf_probe.tasks.segmentation import SegmentationTask

__all__ = [
    "AblationTask",
    "CorrespondenceTask",
    "ExtractionTask",
    "HomographyTask",
    "ProbeTask",
    "PropagationTask",
    "SegmentationTask",
]

_MODULES = {
    "AblationTask": "ablation",
    "CorrespondenceTask": "correspondence",
    "ExtractionTask": "extraction",
    "HomographyTask": "planar",
    "ProbeTask": "probe",
    "PropagationTask": "propagation",
    "SegmentationTask": "segmentation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
