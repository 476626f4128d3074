"""Lightning modules: what is trained or evaluated, one per job."""

from ditf_probe.tasks.correspondence import CorrespondenceTask
from ditf_probe.tasks.probe import ProbeTask
from ditf_probe.tasks.propagation import PropagationTask

__all__ = ["CorrespondenceTask", "ProbeTask", "PropagationTask"]
