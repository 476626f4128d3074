"""Heads over frozen features: plain modules that know channels, not backbones.

A probe is built as `Probe(channels, blocks, ...)`, keeps every argument as an attribute of the same name, and maps
`{block: (B, C, h, w)}` to descriptors `(B, D, h, w)`; see `probes.base.Probe` for what else one may declare.
"""

from ditf_probe.probes.aggregation import LayerAggregation
from ditf_probe.probes.base import Probe, check_num_timesteps, penalty_of, remarks_of, takes_timesteps
from ditf_probe.probes.bottleneck import BottleneckProbe
from ditf_probe.probes.cost import ProbeCost, probe_cost, probe_latency
from ditf_probe.probes.folder import (
    PROBE_SETTINGS,
    ProbeFacts,
    check_features,
    describe_probe,
    init_args,
    load_probe,
    load_weights,
    read_facts,
    save_probe,
)
from ditf_probe.probes.gate import ChannelGate, ClosedChannels
from ditf_probe.probes.linear import LinearProbe
from ditf_probe.probes.lora import LoraSettings, LoraWeights, attach, lora_of
from ditf_probe.probes.low_rank import LowRankAdapter
from ditf_probe.probes.timesteps import TimestepAggregation

__all__ = [
    "PROBE_SETTINGS",
    "BottleneckProbe",
    "ChannelGate",
    "ClosedChannels",
    "LayerAggregation",
    "LinearProbe",
    "LoraSettings",
    "LoraWeights",
    "LowRankAdapter",
    "Probe",
    "ProbeCost",
    "ProbeFacts",
    "TimestepAggregation",
    "attach",
    "check_features",
    "check_num_timesteps",
    "describe_probe",
    "init_args",
    "load_probe",
    "load_weights",
    "lora_of",
    "penalty_of",
    "probe_cost",
    "probe_latency",
    "read_facts",
    "remarks_of",
    "save_probe",
    "takes_timesteps",
]
