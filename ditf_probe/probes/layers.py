"""What heads over several layers share: checks of their input and the projection they are made of."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ditf_probe.errors import InputError


def checked_blocks(blocks: Sequence[int]) -> list[int]:
    """The blocks of a probe as a list.

    Raises:
        InputError: None, a negative one (its meaning depends on the backbone) or one named twice.
    """
    chosen = [int(block) for block in blocks]
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise InputError("blocks", chosen, "name at least one block, each once, counted from 0")
    return chosen


def projection(channels: int, width: int) -> nn.Conv2d:
    """A 1x1 convolution `(B, channels, h, w) -> (B, width, h, w)` with semi-orthogonal weights and zero bias.

    Raises:
        InputError: A width below 1.
    """
    for name, value in (("channels", channels), ("width", width)):
        if value < 1:
            raise InputError(name, value, "give a number of channels, at least 1")
    layer = nn.Conv2d(channels, width, kernel_size=1)
    nn.init.orthogonal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def select_layers(features: Mapping[int, Tensor], blocks: Sequence[int], channels: int) -> list[Tensor]:
    """The features of the given blocks, in their order, each `(B, C, h, w)`.

    Raises:
        InputError: A block is missing or has another width.
    """
    for block in blocks:
        if block not in features:
            raise InputError("features", sorted(features), f"the probe needs block {block}, ask the extractor for it")
        if features[block].shape[1] != channels:
            found = features[block].shape[1]
            raise InputError(
                "features", f"{found} channels at block {block}", f"the probe was made for {channels}, use its backbone"
            )
    return [features[block] for block in blocks]
