"""Lightning modules: what is trained or evaluated, one per job. Names load on first use."""

from typing import TYPE_CHECKING

from ditf_probe.lazy import lazy

if TYPE_CHECKING:
    from ditf_probe.tasks.ablation import AblationTask as AblationTask
    from ditf_probe.tasks.correspondence import CorrespondenceTask as CorrespondenceTask
    from ditf_probe.tasks.extraction import ExtractionTask as ExtractionTask
    from ditf_probe.tasks.planar import HomographyTask as HomographyTask
    from ditf_probe.tasks.probe import ProbeTask as ProbeTask
    from ditf_probe.tasks.propagation import PropagationTask as PropagationTask
    from ditf_probe.tasks.segmentation import SegmentationTask as SegmentationTask

_MODULES = {
    "AblationTask": "ablation",
    "CorrespondenceTask": "correspondence",
    "ExtractionTask": "extraction",
    "HomographyTask": "planar",
    "ProbeTask": "probe",
    "PropagationTask": "propagation",
    "SegmentationTask": "segmentation",
}

__all__ = [*_MODULES]
__getattr__, __dir__ = lazy(__name__, _MODULES)
