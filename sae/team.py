"""Who works on one batch: what a loss or a choice takes from a whole batch, it asks the team.

`sae.processes` has the processes that `accelerate launch` starts.
"""

from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


class Team:
    """One process, alone."""

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """Whether this one writes what all have found."""
        return self.rank == 0

    def total(self, part: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits in each; outside autograd."""
        return part

    def mean(self, part: Tensor) -> Tensor:
        """Its mean."""
        return self.total(part) / self.size

    def smallest(self, part: Tensor) -> Tensor:
        """The smallest of each of its elements."""
        return part

    def joined(self, rows: Tensor) -> Tensor:
        """The rows of all processes, one behind the other in their order; numbers of rows may differ."""
        return rows

    def told(self, value: T) -> T:
        """What the first process says (any object that can be pickled, among processes of one run)."""
        return value

    def collected(self, value: T) -> list[T]:
        """What each says, in their order."""
        return [value]

    def wait(self) -> None:
        """Until all have come here."""

    def leave(self) -> None:
        """The end of the run's common work."""


ALONE = Team()
