"""Prepared maps of the images that came lately."""

from collections.abc import Callable, Hashable

from ditf_probe.matching import PreparedMap

BUDGET = 2**27
"""Bytes that the maps of one row may take by default."""


class MapCache:
    """As many prepared maps as fit a budget; those leave first that were asked for longest ago.

    Pairs of a category come one after the other and share their images. A map is made from its stream, and what its
    search needs is computed, once per stay.

    Args:
        budget: Most bytes; the last map stays even where it is larger.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self._maps: dict[Hashable, PreparedMap] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._maps)

    def get(self, key: Hashable, make: Callable[[], PreparedMap]) -> PreparedMap:
        """The map of a key, made where it is not there."""
        if key in self._maps:
            self._maps[key] = self._maps.pop(key)  # to the end: asked for last
            return self._maps[key]
        found = make()
        self._maps[key] = found
        self._held += found.nbytes
        while self._held > self.budget and len(self._maps) > 1:
            self._held -= self._maps.pop(next(iter(self._maps))).nbytes
        return found

    def clear(self) -> None:
        """Forgets all maps."""
        self._maps.clear()
        self._held = 0
