"""Lightning modules: what is trained or evaluated, one per job."""

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
