"""The heads of a training: which there are, over which blocks, from which seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.errors import InputError
from ditf_probe.probes import (
    PROBE_SETTINGS,
    LoraSettings,
    ProbeFacts,
    check_num_timesteps,
    init_args,
    load_weights,
)
from ditf_probe.tasks.adapted import adapt
from ditf_probe.tasks.rows import ROWS, SEED, head_of, is_copy
from ditf_probe.tasks.settings import BackboneFeatures

HeadFactory = Callable[[int, Sequence[int]], nn.Module]
"""Builds a head from the width of the features and the blocks."""


@dataclass(frozen=True)
class HeadPlan:
    """What is to be trained: a head by each name, or a copy of it from each seed.

    Attributes:
        factories: Name to what builds the head.
        blocks: Name to the blocks of the head; those of the zero-shot rows where a name is missing.
        init_from: Name to the folder of a trained head to start from.
        seeds: Seeds of the initial weights, a copy of each head per seed, called `<name>/seed<seed>`. None is one
            copy that bears the name alone and takes what the random generator of the process gives.
        lora: Adapters inside the backbone that each copy is given; None for none.

    Raises:
        InputError: No head, a name that no row could have, an argument about heads that are not there, or seeds that
            would make equal copies.
    """

    factories: dict[str, HeadFactory]
    blocks: Mapping[str, list[int]] = field(default_factory=dict)
    init_from: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] | None = None
    lora: LoraSettings | None = None

    def __post_init__(self) -> None:
        if not self.factories:
            raise InputError("probes", {}, "name at least one probe to train")
        for name in self.factories:
            if name in ROWS or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
                raise InputError("probes", name, "choose another name, of letters and digits, that no other row has")
            if is_copy(name):
                raise InputError("probes", name, "choose another name, this one is that of a copy from a seed")
        for argument, names in (("probe_blocks", self.blocks), ("init_from", self.init_from)):
            for name in names:
                if name not in self.factories:
                    raise InputError(argument, name, f"use the name of a probe, {', '.join(self.factories)}")
        if self.seeds is not None:
            _check_seeds(self.seeds, self.init_from)

    @property
    def copies(self) -> dict[str, str]:
        """Name of each copy to the name of its head, in order."""
        if self.seeds is None:
            return {name: name for name in self.factories}
        return {f"{name}/{SEED}{seed}": name for name in self.factories for seed in self.seeds}

    def build(self, copy: str, backbone: Backbone, features: BackboneFeatures) -> nn.Module:
        """A copy of a head, at the start of its training.

        Args:
            copy: One of `copies`.
            backbone: The frozen backbone.
            features: What it is trained on; its blocks are those of the head.

        Raises:
            InputError: The head does not keep its arguments, is for another number of timesteps, the weights to start
                from do not fit, or the backbone takes no such adapters.
        """
        name, blocks = self.copies[copy], list(features.blocks)
        with self.seeded(copy):
            head = self.factories[name](backbone.common_channels(blocks), blocks)
        init_args(head)  # what no folder could hold is refused before it is trained
        check_num_timesteps("probes", name, getattr(head, "num_timesteps", None), features.timestep)
        if name in self.init_from:
            load_weights(head, self.init_from[name], asdict(features))
        if self.lora is not None:
            with self.seeded(copy):
                adapt(head, backbone, self.lora, features)
        return head

    @contextmanager
    def seeded(self, copy: str) -> Iterator[None]:
        """Has the body draw initial weights of a copy from its seed."""
        if self.seeds is None:
            yield
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(copy.rpartition(SEED)[2]))
            yield

    def facts(self, copy: str) -> dict[str, Any]:
        """How a copy started, as plain JSON values."""
        seed = None if self.seeds is None else int(copy.rpartition(SEED)[2])
        return {"seed": seed, "init_from": self.init_from.get(self.copies[copy])}


# What copies of one head may differ in: their seeds, how far they came, and what they learnt.
_OF_A_COPY = ("seed", "data_seed", "step", "epoch", "val_pck_0.10_per_point")


def check_copies(facts: Mapping[str, ProbeFacts]) -> None:
    """Refuses copies of one head that were not trained alike, whose mean would not be one over seeds.

    Args:
        facts: Row name to the facts of the probe; what one does not say is not compared.

    Raises:
        InputError: Class, arguments, features or training of two copies differ.
    """
    first: dict[str, str] = {}
    for name, found in facts.items():
        other = first.setdefault(head_of(name), name)
        here, there = _training_of(found), _training_of(facts[other])
        differing = sorted(key for key in here.keys() & there.keys() if here[key] != there[key])
        if differing:
            remedy = f"it was not trained like {other} ({', '.join(differing)} differ), remove what is not current"
            raise InputError("probe_folders", name, remedy)


def _training_of(facts: ProbeFacts) -> dict[str, Any]:
    """What must be equal of copies of one head, as plain JSON values."""
    training = {key: value for key, value in facts.training.items() if key not in _OF_A_COPY}
    for key in training.keys() & {"train", "val"}:  # without the folders of their files
        training[key] = {name: (training[key] or {}).get(name) for name in ("class", "pairs")}
    for loss, settings in training.pop("losses", {}).items():  # without the temperatures that they have learnt
        own = {name: value for name, value in settings["init_args"].items() if name != "temperature"}
        training[f"losses.{loss}"] = [settings["class_path"], settings["weight"], own]
    features = {key: facts.features[key] for key in ("blocks", *PROBE_SETTINGS) if key in facts.features}
    return {"class": facts.class_path, "lora": facts.lora, **facts.init_args, **features, **training}


def _check_seeds(seeds: Sequence[int], init_from: Mapping[str, str]) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise InputError("seeds", list(seeds), "name different whole numbers from 0 on, or leave it out")
    if init_from:
        raise InputError("seeds", list(seeds), "leave out init_from: all copies of a head would start equal")
