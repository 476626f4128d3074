"""Heads over frozen features: plain modules that know channels, not backbones.

A probe is built as `Probe(channels, blocks, ...)`, keeps every argument as an attribute of the same name, and maps
`{block: (B, C, h, w)}` to descriptors `(B, D, h, w)`.
"""

from ditf_probe.probes.aggregation import LayerAggregation
from ditf_probe.probes.folder import ProbeFacts, describe_probe, load_probe, load_weights, read_facts, save_probe
from ditf_probe.probes.linear import LinearProbe

__all__ = [
    "LayerAggregation",
    "LinearProbe",
    "ProbeFacts",
    "describe_probe",
    "load_probe",
    "load_weights",
    "read_facts",
    "save_probe",
]
