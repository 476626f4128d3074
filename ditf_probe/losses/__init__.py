"""What trains a probe: one loss a file, and the objective that weighs them; what trains a head that labels pixels."""

from ditf_probe.losses.keypoint_contrast import KeypointContrast, same_keypoint
from ditf_probe.losses.pixels import pixel_cross_entropy
from ditf_probe.losses.sampling import sample_batch
from ditf_probe.losses.terms import Extras, Term

__all__ = ["Extras", "KeypointContrast", "Term", "pixel_cross_entropy", "same_keypoint", "sample_batch"]
