"""One feature map per image, and matches between two images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.devices import resolve_device
from ditf_probe.errors import InputError
from ditf_probe.geometry import Transform, crop_features
from ditf_probe.matching import MatchingRule, match_by_rule
from ditf_probe.matching.rules import DEFAULT_RULE
from ditf_probe.probes import takes_timesteps
from ditf_probe.tasks.adapted import adapted
from ditf_probe.tasks.backbone_files import read_features
from ditf_probe.tasks.models import loaded_part, make_extractor
from ditf_probe.tasks.prompts import CATEGORY, encode_image_prompts, loading_options, prompts_for, read_captions
from ditf_probe.tasks.settings import BackboneFeatures


class DenseFeatures(nn.Module):
    """The features of one block of a frozen backbone, or those of a head over several, as one map per image.

    Args:
        backbone: Where the features come from; it stays frozen and in eval mode.
        settings: How they are made: blocks, timestep, size, prompt and so on. What concerns banks and stores is not
            used.
        head: From block index to `(B, C, h, w)` to `(B, D, h, w)`, with the adapters that it was trained with; None is
            the one block itself.

    Attributes:
        extractor: Makes the features of all blocks; calibrate it (`extractor.calibrate`) where the settings discard
            massive channels that they do not name, or subtract position means.
        settings: As given.

    Raises:
        InputError: A setting that the backbone does not have, several blocks without a head, or adapters of another
            backbone.
    """

    def __init__(self, backbone: Backbone, settings: BackboneFeatures, head: nn.Module | None = None) -> None:
        super().__init__()
        blocks = check_blocks(settings.blocks, backbone.num_blocks)
        if head is None and len(blocks) != 1:
            raise InputError("blocks", blocks, "name one block, or use the extractor for several")
        if settings.modulation == "adaln" and not backbone.has_adaln:
            raise InputError("modulation", "adaln", f"{backbone.name} has no AdaLN, use none or layer_norm")
        self.settings = settings
        backbone = adapted(backbone, head)
        self.extractor = make_extractor(backbone, settings, blocks)
        self.backbone, self.head = backbone, head
        self._captions = None if settings.captions is None else read_captions(settings.captions)
        self.eval()

    def forward(self, images: Tensor, image_ids: Sequence[str] | None = None, conditions: Any = None) -> Tensor:
        """Feature maps of a batch of images.

        No gradient passes the backbone; one reaches the head where its parameters want it.

        Args:
            images: `(B, 3, H, W)`, float in [0, 1] or uint8; brought to the size of the settings.
            image_ids: Seeds of the noise, and keys of captions; None hashes the pixels.
            conditions: As in `FeatureExtractor`; None is the prompt or the caption of the settings where they have
                one, otherwise the null condition.

        Returns:
            `(B, D, h, w)` float32 over the whole prepared image: where the settings pad, its last rows or columns are
            padding (`geometry.crop_features` cuts them off).

        Raises:
            InputError: What the backbone refuses, a prompt that needs a category, or a calibration that is missing.
        """
        conditions = self._conditions(conditions, image_ids, len(images))
        if images.dtype == torch.uint8:
            images = torch.stack([self.extractor.prepare(image) for image in images.cpu()])
        images = self.extractor.size_rule.batch(images).to(self.backbone.device)
        tapped = self.extractor.tapped(images, image_ids, conditions)
        features = self.extractor.features(tapped, per_timestep=takes_timesteps(self.head))
        maps: Tensor = features[self.extractor.blocks[0]] if self.head is None else self.head(features)
        return maps

    @torch.no_grad()
    def match(
        self,
        source: Tensor,
        target: Tensor,
        keypoints: Tensor,
        *,
        image_ids: tuple[str, str] | None = None,
        conditions: tuple[Any, Any] | None = None,
        rule: MatchingRule = DEFAULT_RULE,
    ) -> tuple[Tensor, Tensor]:
        """Finds the points of one image in another one.

        Args:
            source: `(3, H, W)`, uint8 or float in [0, 1], of any size.
            target: `(3, H', W')`.
            keypoints: `(K, 2)` (x, y) in pixels of the source; (0, 0) is the centre of the top-left pixel.
            image_ids: As in `forward`, of the two images.
            conditions: As in `forward` for a batch of one image, of each of the two.
            rule: How a match is found; by default the best pixel.

        Returns:
            predictions: `(K, 2)` float32 (x, y) in pixels of the target.
            similarity: `(K,)` float32 cosine in [-1, 1].

        Raises:
            InputError: As in `forward`, or a keypoint outside the source.
        """
        maps: list[Tensor] = []
        places: list[tuple[int, int] | Transform] = []
        for number, image in enumerate((source, target)):
            if image.ndim != 3:
                raise InputError(("source", "target")[number], tuple(image.shape), "give one image (3, H, W)")
            ids = None if image_ids is None else [image_ids[number]]
            found = self(image[None], ids, None if conditions is None else conditions[number])[0]
            place = self.extractor.transform((image.shape[1], image.shape[2]))
            whole = self.extractor.size_rule.whole_canvas
            maps.append(found if whole else crop_features(found, place))
            places.append(place if whole else place.size)
        predictions, similarity, _ = match_by_rule(
            maps[0], maps[1], keypoints.to(maps[0].device), places[0], places[1], rule
        )
        return predictions.to(keypoints.device), similarity.to(keypoints.device)

    def _conditions(self, conditions: Any, image_ids: Sequence[str] | None, count: int) -> Any:
        settings = self.settings
        if conditions is not None or (settings.prompt is None and self._captions is None):
            return conditions
        if CATEGORY in (settings.prompt or ""):
            remedy = "give conditions with the category put in, or use settings without it"
            raise InputError("prompt", settings.prompt, remedy)
        if self._captions is not None and image_ids is None:
            raise InputError("image_ids", None, "give them, captions go by image id; or give conditions")
        ids = [""] * count if image_ids is None else image_ids
        return prompts_for(ids, {}, prompt=settings.prompt, captions=self._captions)


def load_features(file: str | Path, *, device: str | torch.device = "auto", dtype: str | None = None) -> DenseFeatures:
    """Training-free features by the file of a backbone.

    Args:
        file: A file as in `configs/backbone/`, or the name of one of those, such as "ditf_tiny".
        device: As in `load_backbone`.
        dtype: As in `load_backbone`, in place of that of the file.

    Raises:
        InputError: No such file, a backbone that cannot be loaded, or several blocks.
    """
    named = CONFIGS / "backbone" / f"{file}.yaml"
    settings = read_features(named if not Path(file).is_file() and named.is_file() else file)
    settings = settings if dtype is None else replace(settings, dtype=dtype)
    return DenseFeatures(load_for(settings, device), settings)


def load_for(settings: BackboneFeatures, device: str | torch.device) -> Backbone:
    """The backbone of some settings, as far as their blocks need it; texts are encoded before it is loaded.

    Raises:
        InputError: It cannot be loaded, or a text cannot be encoded.
    """
    where = resolve_device(device)
    if settings.captions is not None:
        encode_image_prompts(settings, list(read_captions(settings.captions)), {}, where)
    elif settings.prompt is not None and CATEGORY not in settings.prompt:
        encode_image_prompts(settings, [""], {}, where)
    options = loading_options(settings, where) | loaded_part(settings, [settings])
    return load_backbone(settings.backbone, device=where, dtype=settings.dtype, **options)
