"""The training section: choices that exclude each other are refused, with the reason."""

import pytest

from sae.config import parse
from sae.errors import ConfigError
from train.config import TrainConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 4, "accumulate": 8}, "train.accumulate = 8: must be at most batch = 4"),
        (
            {"optimizer": "schedule_free", "decay": 0.2},
            "train.decay = 0.2: must be 0 where optimizer = schedule_free, which averages instead",
        ),
        (
            {"optimizer": "signum", "ema": 0.999},
            "train.ema = 0.999: must be 0 where optimizer = signum, which averages already",
        ),
        (
            {"optimizer": "schedule_free", "betas": [0.0, 0.999]},
            "train.betas = [0.0, 0.999]: the first must be more than 0 where optimizer = schedule_free",
        ),
    ],
)
def test_choices_that_exclude_each_other(values, message):
    with pytest.raises(ConfigError) as caught:
        parse(TrainConfig, values, "train")
    assert str(caught.value) == message


def test_an_average_may_be_asked_for_without_decay():
    assert parse(TrainConfig, {"optimizer": "signum", "decay": 0}, "train").decay == 0
