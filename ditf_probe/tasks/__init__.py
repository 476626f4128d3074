"""Lightning modules: what is trained or evaluated, one per job."""

from ditf_probe.tasks.correspondence import CorrespondenceTask
from ditf_probe.tasks.extraction import ExtractionTask
from ditf_probe.tasks.probe import ProbeTask
from ditf_probe.tasks.segmentation import SegmentationTask

__all__ = ["CorrespondenceTask", "ExtractionTask", "ProbeTask", "SegmentationTask"]
