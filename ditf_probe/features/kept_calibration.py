"""What calibration found, as plain values and tensors that a file can hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ditf_probe.errors import InputError
from ditf_probe.features.calibration import Calibration
from ditf_probe.features.extractor import FeatureExtractor


def keep(extractor: FeatureExtractor, blocks: Sequence[int]) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The part of a calibration that the extractor's own features of some blocks need.

    Args:
        extractor: With its calibration, if it has one.
        blocks: Block indices from 0.

    Returns:
        facts: Number of images and the massive channels of each block, as JSON values; None without a calibration.
        tensors: The position mean `(C, h, w)` of each block, by name, where the features subtract it.
    """
    found = extractor.calibration
    if found is None:
        return None, {}
    massive = {str(block): list(found.massive_channels[block]) for block in blocks}
    tensors = {}
    if extractor.position_debias == "mean":
        means = found.position_means[extractor.modulation, extractor.discard]
        tensors = {f"position_mean/{block}": means[block] for block in blocks}
    return {"images": found.num_images, "massive_channels": massive}, tensors


def restore(
    extractor: FeatureExtractor, facts: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], argument: str
) -> None:
    """Gives an extractor the calibration that `keep` made of another one with the same settings.

    Args:
        extractor: Calibrated by this; left as it is where `facts` is None.
        facts: As `keep` returns them.
        tensors: As `keep` returns them.
        argument: What they were read from, for the error.

    Raises:
        InputError: Something of a block is missing.
    """
    if facts is None:
        return
    recipe = extractor.modulation, extractor.discard
    wanted = extractor.blocks if extractor.position_debias == "mean" else []
    missing = [block for block in extractor.blocks if str(block) not in facts["massive_channels"]]
    missing += [block for block in wanted if f"position_mean/{block}" not in tensors]
    if missing:
        raise InputError(argument, f"calibration without block {missing[0]}", "save it again from a calibrated probe")
    massive = {int(block): list(channels) for block, channels in facts["massive_channels"].items()}
    means = {recipe: {block: tensors[f"position_mean/{block}"] for block in wanted}}
    extractor.calibration = Calibration(int(facts["images"]), massive, means)
