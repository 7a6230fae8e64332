"""Loss terms by hand, their gradients included."""

import pytest
import torch

from sae.latents import Latents
from sae.losses import auxk, ghost, row_sum, squared_error
from tests.sae.checks import close

E = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
"""Residuals of norm 5 and 1; deviations from their mean (1.5, 2.5) are +-(1.5, 1.5), so the variance is 4.5."""


def test_squared_error_is_a_sum_over_d_and_a_mean_over_rows():
    recon = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    error = squared_error(recon, torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    close(error, 7.0)  # (5 + 9) / 2; a mean over all elements would be 3.5
    error.backward()
    close(recon.grad, [[1, 2], [-3, 0]])  # 2 (recon - target) / 2


def test_row_sum_counts_rows_without_entries():
    values = torch.tensor([1.0, 2.0, 6.0])
    latents = Latents(values, torch.tensor([0, 2, 1]), torch.tensor([0, 2, 2, 3]), values, 3)
    close(row_sum(latents, values.square()), 41 / 3)


# --- AuxK ---


def test_auxk_is_divided_by_the_variance_of_the_residual():
    recon = torch.tensor([[3.0, 1.0], [0.0, 0.0]], requires_grad=True)
    term = auxk(E, recon)
    close(term, (9 + 1) / 2 / 4.5)
    term.backward()
    close(recon.grad, [[0, -3 / 4.5], [0, -1 / 4.5]])  # 2 (recon - e) / 2 / 4.5


def test_auxk_is_a_share_of_the_variance():
    """1 for the mean of the residual, 0 for the residual; 1 + ||mean||^2 / variance for nothing."""
    close(auxk(E, E.mean(0).expand(2, 2)), 1.0)
    close(auxk(E, E), 0.0)
    close(auxk(E, torch.zeros(2, 2)), 1 + 8.5 / 4.5)
    close(auxk(1000 * E, torch.zeros(2, 2)), 1 + 8.5 / 4.5)


def test_the_residual_is_a_constant():
    residual, recon = E.clone().requires_grad_(), torch.ones(2, 2, requires_grad=True)
    (auxk(residual, recon) + ghost(residual, recon, torch.tensor(1.0))).backward()
    assert residual.grad is None


@pytest.mark.parametrize("rows", [E[:1], E[:1].repeat(3, 1), torch.zeros(2, 2), torch.full((3, 2), 5.7)])
def test_a_residual_without_variance_has_no_auxk(rows):
    """The mean of three times 5.7 is another float than 5.7: by rounding alone the variance would be 5e-13."""
    recon = torch.ones(len(rows), 2, requires_grad=True)
    term = auxk(rows, recon)
    term.backward()
    assert term == 0
    assert recon.grad.abs().sum() == 0


# --- ghost gradients ---


def test_ghost():
    recon = torch.tensor([[0.0, 2.0], [4.0, 0.0]], requires_grad=True)
    term = ghost(E, recon, torch.tensor(7.0, requires_grad=True))
    # scaled to norms 2.5 and .5: (0,2.5), (.5,0); errors 9 + 2.25 and .25 + 1, mean 6.25, scaled to 7
    close(term, 7.0)
    term.backward()
    # 2/2 (scaled - e) by 2.5/2, .5/4 and 7/6.25: (-3,-1.5) 1.4 and (.5,-1) .14; the scales are constants
    close(recon.grad, [[-4.2, -2.1], [0.07, -0.14]])


def test_ghost_does_not_depend_on_how_much_is_written():
    """A factor of a row changes its gradient as much as its activations, so none for exp(pre)."""
    term = ghost(E, torch.tensor([[0.0, 2e-20], [4e20, 0.0]]), torch.tensor(7.0))
    close(term, 7.0)


@pytest.mark.parametrize(
    ("residual", "recon"),
    [(E, torch.zeros(2, 2)), (torch.zeros(2, 2), torch.ones(2, 2)), (torch.zeros(2, 2), torch.zeros(2, 2))],
    ids=["nothing is written", "nothing is missing", "neither"],
)
def test_ghost_is_finite(residual, recon):
    recon.requires_grad_()
    mse = squared_error(residual, torch.zeros(2, 2))
    term = ghost(residual, recon, mse)
    term.backward()
    close(term, mse)
    assert torch.isfinite(recon.grad).all()
