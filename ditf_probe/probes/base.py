"""What all heads of this package have in common."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ditf_probe.errors import InputError


class Probe(nn.Module):
    """A head over frozen features: `{block: (B, C, h, w)}` to descriptors `(B, D, h, w)`.

    A head of one's own need not inherit from this class. Where it does not, whatever of the attributes and methods
    below it lacks has the value that stands here.

    Args:
        channels: Width C of the features.
        blocks: Blocks whose features are used.

    Attributes:
        per_timestep: Whether it takes the features of each timestep, `(B, T, C, h, w)`, in place of their mean.
        pointwise: Whether it acts on each token alone, given maps of one grid.
        starts_at_zero_shot: Whether it hands out the features of its block bit by bit until it is trained.

    Raises:
        InputError: No channels, or blocks that `checked_blocks` refuses.
    """

    per_timestep: bool = False
    pointwise: bool = False
    starts_at_zero_shot: bool = False

    def __init__(self, channels: int, blocks: Sequence[int]) -> None:
        super().__init__()
        self.channels = checked_count("channels", channels)
        self.blocks = checked_blocks(blocks)

    def penalty(self) -> Tensor | None:
        """What training adds to the loss of its descriptors; None for nothing."""
        return None

    def remarks(self, massive: Mapping[int, Sequence[int]] | None = None) -> tuple[str, ...]:
        """What the table of a comparison says of the trained head.

        Args:
            massive: Block to its massive channels, where they are known.
        """
        del massive
        return ()


def takes_timesteps(probe: nn.Module | None) -> bool:
    """Whether a head, of this package or another, takes the features of each timestep."""
    return bool(getattr(probe, "per_timestep", False))


def penalty_of(probe: nn.Module) -> Tensor | None:
    """What a head, of this package or another, adds to its loss; None for nothing."""
    penalty = getattr(probe, "penalty", None)
    found: Tensor | None = None if penalty is None else penalty()
    return found


def remarks_of(probe: nn.Module, massive: Mapping[int, Sequence[int]] | None = None) -> tuple[str, ...]:
    """What the table of a comparison says of a trained head, of this package or another; see `Probe.remarks`."""
    remarks = getattr(probe, "remarks", None)
    return () if remarks is None else tuple(remarks(massive))


def check_num_timesteps(argument: str, name: str, wanted: int | None, timestep: int | Sequence[int]) -> None:
    """Refuses features of another number of timesteps than a head takes.

    Args:
        argument: Who asked for the head.
        name: What it is called there.
        wanted: How many it takes; None for any.
        timestep: Timestep, or timesteps, of the features.

    Raises:
        InputError: They have more or fewer.
    """
    given = 1 if isinstance(timestep, int) else len(timestep)
    if wanted is not None and wanted != given:
        remedy = f"its head takes {wanted} timesteps and its features have {given}, give it num_timesteps {given}"
        raise InputError(argument, name, remedy)


def checked_count(name: str, value: int) -> int:
    """A number of channels, timesteps and the like.

    Raises:
        InputError: It is below 1.
    """
    if value < 1:
        raise InputError(name, value, "use a whole number, at least 1")
    return value


def checked_rate(rate: float) -> float:
    """How much faster than a weight moves what is computed from it.

    Raises:
        InputError: It is not positive, or infinite.
    """
    if not 0 < rate < float("inf"):
        raise InputError("rate", rate, "give a positive number, such as 10")
    return rate


def checked_blocks(blocks: Sequence[int]) -> list[int]:
    """The blocks of a probe as a list.

    Raises:
        InputError: None, a negative one (its meaning depends on the backbone) or one named twice.
    """
    chosen = [int(block) for block in blocks]
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise InputError("blocks", chosen, "name at least one block, each once, counted from 0")
    return chosen
