"""The learning rate: the paper's rule, and no step at 0."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.schedule import lr_scale, peak_lr


@pytest.mark.parametrize(("n_latents", "lr"), [(16_384, 2e-4), (4096, 4e-4), (65_536, 1e-4)])
def test_peak_by_hand(n_latents, lr):
    assert peak_lr(n_latents) == pytest.approx(lr, rel=1e-12)


def test_course_by_hand():
    # 10 steps: 2 of warm-up, 5 of decay
    course = [lr_scale(step, 10, warmup=0.2, decay=0.5) for step in range(10)]
    assert course == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_constant_without_shares():
    assert [lr_scale(step, 4, 0.0, 0.0) for step in range(4)] == [1.0] * 4


def test_all_decay():
    assert [lr_scale(step, 4, 0.0, 1.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_rises_then_falls_and_is_never_0(n, warmup, decay):
    course = [lr_scale(step, n, warmup, decay) for step in range(n)]
    assert all(0 < scale <= 1 for scale in course)
    top = course.index(max(course))
    assert course[: top + 1] == sorted(course[: top + 1])
    assert course[top:] == sorted(course[top:], reverse=True)
