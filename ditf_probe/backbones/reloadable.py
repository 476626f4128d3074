"""Several large backbones in the memory of one: each is loaded when it computes, and dropped for the next."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.backbones.weight_options import Loaded

ROOM = 2**28
"""Bytes of weights that stay beside each other: loading small models again would cost more than their memory."""


class ModelSlot:
    """Room for one large loaded backbone, or for several small ones; who comes next takes the place of those here.

    A backbone that is dropped is gone from the device and from CPU memory, and comes back by loading it again. Parking
    it in CPU memory would be quicker, but needs room for all of them together, and weights that are quantised or
    offloaded cannot be moved back and forth.

    Args:
        room: Bytes of weights up to which several backbones stay; None drops nothing, ever, for tasks whose rows take
            turns image by image.
    """

    def __init__(self, room: int | None = ROOM) -> None:
        self.room = room
        self._models: dict[ReloadableBackbone, Backbone] = {}

    def take(self, owner: "ReloadableBackbone") -> Backbone:
        """The loaded backbone of an owner; large ones that were here are dropped first, unless it is made from them."""
        if owner not in self._models:
            if self._full() and owner.origin not in self._models:
                self.clear()
            self._models[owner] = owner.load()
            if self._full():
                self.clear(owner)
        return self._models[owner]

    def clear(self, kept: "ReloadableBackbone | None" = None) -> None:
        """Drops every backbone that is here, but for one, and gives their memory back."""
        dropped = [owner for owner in self._models if owner is not kept]
        for owner in dropped:
            owner.remember(self._models.pop(owner))
        if dropped:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _full(self) -> bool:
        weights = (weight for model in self._models.values() for weight in (*model.parameters(), *model.buffers()))
        return self.room is not None and sum(weight.nbytes for weight in weights) > self.room


class ReloadableBackbone(Backbone):
    """A backbone that is in memory only while no other one of its slot computes.

    Its facts and settings are those of an outline; so it is loaded when it computes first, and never where nothing is
    computed. Without an outline it is loaded at construction. As long as it is alone in its slot it is never loaded
    again.

    Args:
        load: Loads the backbone; must give the same one every time.
        slot: Where it is kept, shared with the others.
        origin: Which backbone of the same slot `load` makes it from, if any.
        outline: Makes the same backbone without weights ("none"), or with those of its autoencoder alone
            ("autoencoder"), by which the settings tell apart what was initialised anew; see `load_backbone`.
        device: Where it computes, for an outline.

    Attributes:
        load: As given.
        origin: As given.
    """

    def __init__(
        self,
        load: Callable[[], Backbone],
        slot: ModelSlot,
        origin: "ReloadableBackbone | None" = None,
        outline: Callable[[Loaded], Backbone] | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.load, self.origin = load, origin
        self._slot = slot
        self._settings: dict[str, Any] | None = None
        self._outline = outline
        model = slot.take(self) if outline is None else outline("none")
        for name in Backbone.__annotations__:
            setattr(self, name, getattr(model, name))
        self._device = model.device if device is None else device
        self._taps = [model.taps(block) for block in range(model.num_blocks)]
        self._channels = [model.channels_at(block) for block in range(model.num_blocks)]
        self._strides = [model.stride_at(block) for block in range(model.num_blocks)]
        self.eval()

    @property
    def model(self) -> Backbone:
        """The backbone itself, loaded if need be."""
        return self._slot.take(self)

    @property
    def device(self) -> torch.device:
        """Where it computes, loaded or not."""
        return self._device

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The taps that a block has."""
        (index,) = check_blocks([block], self.num_blocks)
        return self._taps[index]

    def channels_at(self, block: int) -> int:
        """Width of the stream of one block."""
        return self._channels[block]

    def stride_at(self, block: int) -> int:
        """Pixels of the prepared image per token side at one block."""
        return self._strides[block]

    def settings(self) -> dict[str, Any]:
        """Everything about the backbone that changes a number; kept when the backbone is dropped."""
        if self._settings is None:
            loaded: Loaded = "none" if self.origin is None else "autoencoder"
            model = self.model if self._outline is None else self._outline(loaded)
            self._settings = model.settings()
        return dict(self._settings)

    def remember(self, model: Backbone) -> None:
        """Keeps the settings of the loaded backbone, hash of the weights included, where only it can tell them."""
        if self._settings is None and self._outline is None:
            self._settings = model.settings()

    def untrained(self, seed: int = 0) -> Backbone:
        """The untrained control, in the same slot; both are in memory only while it is made."""
        made = self._outline
        outline = None if made is None else lambda loaded: made(loaded).untrained(seed)
        return ReloadableBackbone(lambda: self.model.untrained(seed), self._slot, self, outline, self._device)

    def forward(self, images: Tensor, **arguments: Any) -> Any:
        """Runs the backbone; see `Backbone.forward`."""
        return self.model(images, **arguments)
