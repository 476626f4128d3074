"""What trains a probe: one loss a file, and the objective that weighs them; what trains a head that labels pixels."""

from ditf_probe.losses.cycle import CycleConsistency
from ditf_probe.losses.dense_contrast import DenseContrast
from ditf_probe.losses.distillation import SelfDistillation
from ditf_probe.losses.ends import End
from ditf_probe.losses.gaussian import GaussianCrossEntropy
from ditf_probe.losses.keypoint_contrast import KeypointContrast, same_keypoint
from ditf_probe.losses.objective import Objective
from ditf_probe.losses.pixels import pixel_cross_entropy
from ditf_probe.losses.searching import SearchTerm
from ditf_probe.losses.soft_argmax import SoftArgmaxRegression
from ditf_probe.losses.terms import Extras, Term
from ditf_probe.losses.transport import OptimalTransport, log_sinkhorn

__all__ = [
    "CycleConsistency",
    "DenseContrast",
    "End",
    "Extras",
    "GaussianCrossEntropy",
    "KeypointContrast",
    "Objective",
    "OptimalTransport",
    "SearchTerm",
    "SelfDistillation",
    "SoftArgmaxRegression",
    "Term",
    "log_sinkhorn",
    "pixel_cross_entropy",
    "same_keypoint",
]
