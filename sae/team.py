"""Who works on a run: one process alone, or those that `accelerate launch` starts.

All of them run the same program on the same configuration, and see the same files. What a loss or a choice takes from
a whole batch, of which each process has its rows, or from all latents, of which each has its part, it asks the team.
"""

import os
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

PIECE = 1 << 24  # numbers that are gathered from all at a time
PATIENCE = timedelta(days=7)  # others wait while the first builds what is not shared
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

    def summed(self, part: Tensor) -> Tensor:
        """The sum of what each has computed, of which all then compute the same; the gradient of a part is that of the
        sum."""
        return part

    def shared(self, whole: Tensor) -> Tensor:
        """What all have, and each computes its own of; the gradient is the sum of theirs."""
        return whole

    def own(self, whole: Tensor) -> Tensor:
        """This process's rows of what is divided among all, equally and in their order."""
        size = len(whole) // self.size
        return whole[self.rank * size : (self.rank + 1) * size]

    def whole(self, own: Tensor) -> Tensor:
        """What `own` has divided, on the CPU of the first process; for the others no rows."""
        return own.cpu()

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


class Processes(Team):
    """Those of accelerate's state."""

    def __init__(self) -> None:
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
        self.rank, self.size = state.process_index, state.num_processes

    def total(self, part: Tensor) -> Tensor:
        return _reduced(part, "sum")

    def smallest(self, part: Tensor) -> Tensor:
        return -_reduced(-part, "max")

    def joined(self, rows: Tensor) -> Tensor:
        counts = _gathered(torch.tensor([len(rows)], device=rows.device)).tolist()
        if max(counts) == 0:
            return rows
        every = _gathered(rows.detach().contiguous()).split(max(counts))
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])

    def summed(self, part: Tensor) -> Tensor:
        return cast(Tensor, _Summed.apply(part, self))

    def shared(self, whole: Tensor) -> Tensor:
        return cast(Tensor, _Shared.apply(whole, self))

    def whole(self, own: Tensor) -> Tensor:
        size, rows = len(own), max(1, PIECE // max(1, self.size * own[:1].numel()))
        result = own.new_empty((size * self.size if self.is_main else 0, *own.shape[1:]), device="cpu")
        for start in range(0, size, rows):
            every = _gathered(own[start : start + rows].detach().contiguous()).chunk(self.size)
            for rank, part in enumerate(every if self.is_main else ()):
                result[rank * size + start : rank * size + start + len(part)] = part
        return result

    def told(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def collected(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        return gather_object([value])

    def wait(self) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()

    def leave(self) -> None:
        from accelerate import PartialState

        self.wait()  # one that goes while another still listens takes it down
        PartialState().destroy_process_group()


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, team: Team) -> Tensor:  # noqa: ARG004 - has no state
        return team.total(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: ARG004
        return grad, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.team.total(grad), None


def current() -> Team:
    """The team that this process was started in."""
    return _processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ALONE


@cache
def _processes() -> Processes:
    return Processes()


def _reduced(part: Tensor, how: str) -> Tensor:
    from accelerate.utils import reduce

    return cast(Tensor, reduce(part.detach(), how))


def _gathered(rows: Tensor) -> Tensor:
    """As many rows of each, the most that one has."""
    from accelerate.utils import gather, pad_across_processes

    return cast(Tensor, gather(pad_across_processes(rows)))
