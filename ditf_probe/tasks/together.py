"""Ranks that share a feature store divide what it lacks, in place of computing the same images each."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ditf_probe.data.pairs import ImageSource
from ditf_probe.features.stored import StoredBank


def fill_together(
    bank: StoredBank,
    dataset: ImageSource,
    ids: Sequence[str] | None,
    conditions: Callable[[list[str]], Any] | None = None,
    **loading: Any,
) -> None:
    """Computes what any rank wants and the store lacks, each image on one rank; every rank must take part.

    Afterwards all of it is in the store, where the bank of each rank finds it. Nothing happens in a single process.

    Args:
        bank: That of this rank, over the store of all.
        dataset: As in `FeatureBank.fill`.
        ids: What this rank wants; ranks may want different images.
        conditions: As in `FeatureBank.fill`.
        **loading: As in `FeatureBank.fill`: num_workers, batch_size.
    """
    patient = patient_group()
    if patient is None:
        return
    ranks = dist.get_world_size()
    wanted: list[Any] = [None] * ranks
    dist.all_gather_object(wanted, None if ids is None else list(ids))
    everything = None if None in wanted else list(dict.fromkeys(name for names in wanted for name in names))
    # Ranks look at different moments, and must divide the same list.
    missing: list[Any] = [list(bank.plan(dataset, everything, conditions))]
    dist.broadcast_object_list(missing, src=0)
    bank.fill(dataset, missing[0][dist.get_rank() :: ranks], conditions=conditions, **loading)
    wait_for_all(patient)


def patient_group() -> Any:
    """A group of all ranks in which they wait for each other for days, not for the minutes that torch allows.

    Who has computed its share waits for the slowest, and a run of many hours may part them by more than minutes.

    Returns:
        For `wait_for_all`; None in a single process.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(days=30))


def wait_for_all(group: Any) -> None:
    """Waits until every rank is here, and gives the group up.

    Args:
        group: From `patient_group`, before the work began.
    """
    if group is not None:
        dist.barrier(group)
        dist.destroy_process_group(group)
