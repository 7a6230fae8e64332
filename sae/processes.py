"""The processes of one run, as `accelerate launch` starts them; a run that was started plainly is alone.

All of them run the same program on the same configuration, and see the same files.
"""

import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, cast

from sae.team import ALONE, T, Team

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=7)  # others wait while the first builds what is not shared


def current() -> Team:
    """The team that this process was started in."""
    return _processes() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ALONE


@cache
def _processes() -> "Processes":
    return Processes()


class Processes(Team):
    """Those of accelerate's state."""

    def __init__(self) -> None:
        from accelerate import PartialState

        from sae.model import default_device

        state = PartialState(cpu=default_device().type == "cpu", timeout=PATIENCE)
        self.rank, self.size = state.process_index, state.num_processes

    def total(self, part: "Tensor") -> "Tensor":
        return _reduced(part, "sum")

    def smallest(self, part: "Tensor") -> "Tensor":
        return -_reduced(-part, "max")

    def joined(self, rows: "Tensor") -> "Tensor":
        import torch

        counts = _gathered(torch.tensor([len(rows)], device=rows.device)).tolist()
        every = _gathered(rows.detach().contiguous()).split(max(counts))
        return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])

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


def _reduced(part: "Tensor", how: str) -> "Tensor":
    from accelerate.utils import reduce

    return cast("Tensor", reduce(part.detach(), how))


def _gathered(rows: "Tensor") -> "Tensor":
    """As many rows of each, the most that one has."""
    from accelerate.utils import gather, pad_across_processes

    return cast("Tensor", gather(pad_across_processes(rows)))
