"""What a task asks of a backbone, as plain values that a configuration file can hold."""

import json
import platform
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ditf_probe.data.pairs import PairDataset
from ditf_probe.errors import InputError
from ditf_probe.features.settings import FeatureSettings


@dataclass(frozen=True)
class BackboneFeatures(FeatureSettings):
    """A frozen backbone and how features are made with it.

    `blocks` holds the one block of the zero-shot rows; probes name theirs apart. `modulation`, `discard` and
    `position_debias` are what probes are trained on; zero-shot rows each have their own.

    Attributes:
        backbone: Name or path, as in `load_backbone`.
        options: Further options of `load_backbone`.
        dtype: Dtype of the backbone and of its text encoders, as in `load_backbone`.
        prompt: Text for every image; `{category}` in it stands for the image's category, which makes zero-shot rows use
            labels. "" is the empty prompt; None, without captions, the null condition of the backbone.
        captions: JSON file of image id to text, in place of `prompt`.
        prompt_cache: Folder in which the embeddings of prompts are kept; see `PromptEncoder`.
        text_encoders: Pipeline folder or hub id of the text encoders; that of the backbone by default.
        text_options: Arguments of the pipeline's `encode_prompt`, in place of its defaults.
        cells: Size in cells of the backbone, in place of `image_size`: 60 is 960 pixels at a stride of 16.
        bank_dtype: Dtype in which streams are kept: "float32", "bfloat16" or "float16".
        bank_gib: Most memory that the streams of one data set may take, in GiB. More than that is refused; with a
            `store`, images leave memory and come back from there.
        num_workers: Processes that decode and prepare images ahead; None is as many as leave each GPU its share of the
            cores, at most 8, and none beside a model on the CPU.
        batch_size: Images per call of the backbone.
        store: Folder of feature stores, in which streams are looked for before they are computed, and kept for later
            runs; None keeps nothing. See `docs/store.md`.
        store_only: Read the store alone: refuse images that it lacks.
        store_basis: File of a basis, to which the store reduces streams; made by `basis` of `ExtractionTask`. Controls
            of a comparison (colours, untrained) are kept whole.
    """

    backbone: str = "ditf-tiny"
    options: dict[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    prompt: str | None = None
    captions: str | None = None
    prompt_cache: str = "runs/prompts"
    text_encoders: str | None = None
    text_options: dict[str, Any] = field(default_factory=dict)
    cells: int | None = None
    bank_dtype: str = "float32"
    bank_gib: float = 4.0
    num_workers: int | None = None
    batch_size: int = 16
    store: str | None = None
    store_only: bool = False
    store_basis: str | None = None

    def extractor_options(self) -> dict[str, Any]:
        """Arguments of `FeatureExtractor`, as plain values."""
        names = FeatureSettings.__dataclass_fields__
        return {name: value for name, value in asdict(self).items() if name in names}

    def sized(self, stride: int) -> "BackboneFeatures":
        """The same with the size in pixels.

        Args:
            stride: Pixels per cell of the backbone.

        Raises:
            InputError: Both `cells` and `image_size`, or less than one cell.
        """
        if self.cells is None:
            return self
        if self.image_size is not None:
            raise InputError("cells", self.cells, f"leave it out, or image_size, which is {self.image_size}")
        if self.cells < 1:
            raise InputError("cells", self.cells, "use at least one cell")
        return replace(self, cells=None, image_size=self.cells * stride)


def dataset_settings(dataset: PairDataset | None) -> dict[str, Any] | None:
    """What is known of a data set that changes a number: its class, length and public plain attributes."""
    if dataset is None:
        return None
    facts: dict[str, Any] = {
        "class": f"{type(dataset).__module__}.{type(dataset).__qualname__}",
        "pairs": len(dataset),
        "unit": dataset.unit,
        "threshold": dataset.threshold,
    }
    for name, value in sorted(vars(dataset).items()):
        if isinstance(value, PairDataset):  # the whole that a part is made of
            facts[name] = dataset_settings(value)
        elif not name.startswith("_") and isinstance(value, str | int | float | bool | list | tuple | dict | None):
            facts[name] = json.loads(json.dumps(value, default=str))
    return facts


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    packages = ("ditf_probe", "torch", "diffusers", "timm", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
