"""How much of a transformer's weights is loaded, how precise they are, and where they rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.families import Family
from ditf_probe.backbones.offloading import Offload, check_offload
from ditf_probe.backbones.quantised import Quantization, check_quantization
from ditf_probe.backbones.truncation import truncate
from ditf_probe.errors import InputError, check_choice

Loaded = Literal["all", "autoencoder", "none"]
"""Which weights are loaded. Modules without theirs are on the device "meta": they say everything of themselves, and
compute nothing."""


@dataclass(frozen=True, slots=True)
class WeightOptions:
    """Options of `load_backbone` for the weights.

    Attributes:
        last_block: The last block that will be asked for, from 0; None loads everything.
        last_tap: The only tap of that block that will be asked for; None loads all of it.
        quantization: How the weights are quantised, None for not at all.
        offload: Where they rest.
        loaded: Which weights are there at all.
    """

    last_block: int | None = None
    last_tap: Tap | None = None
    quantization: Quantization | None = None
    offload: Offload = "none"
    loaded: Loaded = "all"

    @classmethod
    def checked(
        cls,
        path: Path,
        device: torch.device,
        last_block: int | None,
        last_tap: Tap | None,
        quantization: Quantization | None,
        offload: Offload,
        loaded: Loaded = "all",
    ) -> "WeightOptions":
        """Options that can run on this machine; a `.gguf` file is of that quantisation.

        Args:
            path: The file, folder or hub id that is to be loaded.
            device: Where it is to run.
            last_block: See above.
            last_tap: See above.
            quantization: See above.
            offload: See above.
            loaded: See above.

        Raises:
            InputError: An option is unknown, contradicts another or the file, or needs a package or a GPU.
        """
        if last_tap is not None and last_block is None:
            raise InputError("last_tap", last_tap, "is a tap of the last block, name that with last_block")
        is_gguf = path.suffix == ".gguf"
        kind = "gguf" if is_gguf and quantization is None else quantization
        check_offload(offload, kind)
        check_choice("loaded", loaded, Loaded)
        if kind is not None:
            check_quantization(kind, device)
            if (kind == "gguf") != is_gguf:
                raise InputError("quantization", kind, f"gguf is for .gguf files and they for it, not for {path}")
        return cls(last_block, last_tap, kind, offload, loaded)

    def resting_place(self, device: torch.device) -> torch.device:
        """Where the weights are put first, for a model that computes on a device."""
        return device if self.offload == "none" else torch.device("cpu")

    def cut(self, transformer: nn.Module, family: Family) -> None:
        """Drops what comes after the last block and its tap, in place.

        Raises:
            InputError: The model has no such block, or the block no such tap.
        """
        if self.last_block is not None:
            truncate(transformer, family, self.last_block, self.last_tap)


ALL_OF_IT = WeightOptions()
"""Every block, unquantised, on the device."""
