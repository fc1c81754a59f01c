"""Least squares of maps and norms."""

from __future__ import annotations

import torch
from torch import nn

from pocketlm.models.cut import reader_of
from pocketlm.models.refit import fit_linear, fit_norm
from pocketlm.models.saliency import principal_directions, salient_units


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_map_that_fits_already_is_left() -> None:
    linear, inputs = nn.Linear(6, 4), random(50, 6)
    before = linear.weight.clone(), linear.bias.clone()
    with torch.no_grad():
        fit_linear(linear, inputs, linear(inputs))
    assert torch.allclose(linear.weight, before[0], atol=1e-5)
    assert torch.allclose(linear.bias, before[1], atol=1e-5)


def test_a_map_is_found_again_and_a_penalty_holds_it() -> None:
    inputs, wanted = random(200, 6) + 3, nn.Linear(6, 4)
    with torch.no_grad():
        targets = wanted(inputs)
    free, held = nn.Linear(6, 4), nn.Linear(6, 4)
    start = held.weight.clone()
    fit_linear(free, inputs, targets, penalty=1e-7)
    assert torch.allclose(free.weight, wanted.weight, atol=1e-4)
    assert torch.allclose(free.bias, wanted.bias, atol=1e-3)
    fit_linear(held, inputs, targets, penalty=1e7)
    assert torch.allclose(held.weight, start, atol=1e-4)
    # The bias carries no penalty, so the mean is right all the same.
    assert torch.allclose(held(inputs).mean(dim=0), targets.mean(dim=0), atol=1e-4)


def test_the_fit_is_a_minimum() -> None:
    inputs, targets = random(40, 5), random(40, 3, seed=1)
    linear = nn.Linear(5, 3)
    fit_linear(linear, inputs, targets, penalty=1e-9)
    linear.zero_grad()
    nn.functional.mse_loss(linear(inputs), targets).backward()
    assert linear.weight.grad is not None and linear.bias.grad is not None
    assert linear.weight.grad.abs().max() < 1e-5 and linear.bias.grad.abs().max() < 1e-5


def test_more_inputs_than_examples_are_no_trouble() -> None:
    linear = nn.Linear(30, 2)
    fit_linear(linear, random(5, 30), random(5, 2, seed=1))
    assert torch.isfinite(linear.weight).all()


def test_a_norm_is_found_again() -> None:
    norm, wanted, inputs = nn.LayerNorm(8), nn.LayerNorm(8), random(60, 8)
    wanted.weight.data, wanted.bias.data = random(8, seed=2), random(8, seed=3)
    with torch.no_grad():
        fit_norm(norm, inputs, wanted(inputs))
    assert torch.allclose(norm.weight, wanted.weight, atol=1e-4)
    assert torch.allclose(norm.bias, wanted.bias, atol=1e-4)


def test_units_that_follow_from_others_are_not_chosen() -> None:
    free = random(100, 3)
    states = torch.cat([free, free @ random(3, 4, seed=1) * 0.1], dim=1)
    moment = states.T @ states
    assert salient_units(moment, 3) == [0, 1, 2]
    basis = torch.eye(7)[:, :3]
    assert torch.allclose(states @ basis @ reader_of(moment, basis).T, states, atol=1e-4)


def test_dead_units_are_chosen_last_and_cost_nothing() -> None:
    states = random(100, 6)
    states[:, [1, 4]] = 0
    moment = states.T @ states
    assert salient_units(moment, 4) == [0, 2, 3, 5]
    assert len(set(salient_units(moment, 6))) == 6
    basis = principal_directions(moment, 4)
    assert torch.allclose(basis.T @ basis, torch.eye(4), atol=1e-5)
    assert torch.allclose(states @ basis @ basis.T, states, atol=1e-4)


def test_principal_directions_of_a_plane() -> None:
    """Vectors in a plane are told by two directions, the longer one first."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64)).Q
    vectors = torch.randn(50, 2, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 5.0])
    vectors = vectors.double() @ plane.T
    found = principal_directions(vectors.T @ vectors, 2)
    assert torch.allclose(vectors @ found @ found.T, vectors, atol=1e-9)
    along = (vectors @ found).norm(dim=0)
    assert along[0] > along[1]


def test_the_reader_of_principal_directions_is_themselves() -> None:
    states = random(100, 6)
    moment = states.T @ states
    basis = principal_directions(moment, 3)
    assert torch.allclose(reader_of(moment, basis), basis, atol=1e-4)
