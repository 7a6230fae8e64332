"""Freed memory is used again within the context, and goes back after it."""

import mmap
import resource

import pytest
import torch

from sae import memory

pytestmark = pytest.mark.skipif(memory._glibc() is None, reason="the C library is not glibc")
MEGABYTES = 256


def faults() -> int:
    """Pages that this process has been given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def of_a_matrix() -> int:
    """Faults that it takes to fill a matrix, twice as large as what glibc keeps by itself."""
    before = faults()
    torch.ones(MEGABYTES << 18)
    return faults() - before


def resident() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * mmap.PAGESIZE >> 20


def test_freed_memory_is_used_again():
    assert min(of_a_matrix() for _ in range(4)) > 1000
    with memory.reused():
        taken = [of_a_matrix() for _ in range(9)]
    assert sum(pages < 1000 for pages in taken) > 4, "most lie where one was before: small ones may take a piece of it"


def test_memory_goes_back_afterwards():
    with memory.reused():
        of_a_matrix()
        before = resident()
    assert before - resident() > 0.9 * MEGABYTES
    of_a_matrix()
    assert before - resident() > 0.9 * MEGABYTES, "and nothing is kept that comes later"


def test_it_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), memory.reused():
        raise ZeroDivisionError
    of_a_matrix()
    assert of_a_matrix() > 1000
