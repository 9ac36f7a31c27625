"""Initial weights are a function of (seed, parameter name)."""

import math

import pytest
import torch

from gptlab.model.gpt import GPT, build
from gptlab.spec import ModelSpec

SPEC = ModelSpec(n_layer=2, n_head=4, n_embd=64, context_length=32)


@pytest.fixture(scope="module")
def model() -> GPT:
    return build(SPEC, seed=0)


def variant(**changes: object) -> ModelSpec:
    return ModelSpec(**{**SPEC.model_dump(), **changes})


def differing(one: GPT, other: GPT) -> set[str]:
    """Names of shared parameters whose values differ."""
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return {name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])}


@pytest.mark.parametrize("n_layer", [2, 5])
def test_matrices_have_standard_deviation_002_and_projections_less(n_layer: int):
    for name, parameter in build(variant(n_layer=n_layer), seed=0).named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 / math.sqrt(2 * n_layer) if "projection" in name else 0.02
            tolerance = 5 * expected / math.sqrt(2 * parameter.numel())  # five standard errors
            assert parameter.std().item() == pytest.approx(expected, abs=tolerance), name
            assert parameter.mean().item() == pytest.approx(0, abs=5 * expected / math.sqrt(parameter.numel())), name


def test_projections_into_the_residual_stream_are_two_per_block(model: GPT):
    assert sum("projection.weight" in name for name, _ in model.named_parameters()) == 2 * SPEC.n_layer


def test_biases_are_zero_and_norms_one(model: GPT):
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == ("norm.weight" in name)).all(), name


def test_weights_are_normal(model: GPT):
    weights = model.token_embedding.weight.flatten() / 0.02
    for bound, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (weights.abs() < bound).float().mean().item() == pytest.approx(share, abs=0.001)


def test_no_two_matrices_have_the_same_weights(model: GPT):
    first = [parameter.flatten()[:8].tolist() for parameter in model.parameters() if parameter.ndim == 2]
    assert len({round(row[0] / row[1], 4) for row in first}) == len(first)


def test_same_seed_gives_the_same_weights_whatever_was_drawn_before(model: GPT):
    torch.manual_seed(123)
    torch.randn(10)
    again = build(SPEC, seed=0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), again.parameters(), strict=True))


def test_building_does_not_advance_torchs_generator():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    build(SPEC, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [1, 2**63 - 1])
def test_another_seed_gives_other_weights(model: GPT, seed: int):
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    assert differing(model, build(SPEC, seed=seed)) == matrices


@pytest.mark.parametrize(
    "changes",
    [{"dropout": 0.3}, {"tied": True}, {"bias": False}, {"n_head": 8}],
    ids=lambda changes: next(iter(changes)),
)
def test_variant_shares_the_parameters_of_the_same_shape(model: GPT, changes: dict[str, object]):
    assert differing(model, build(variant(**changes), seed=0)) == set()


def test_variant_with_more_layers_shares_all_but_the_scale_of_the_projections(model: GPT):
    deeper = build(variant(n_layer=3), seed=0)
    projections = {name for name, _ in model.named_parameters() if name.endswith("projection.weight")}
    assert differing(model, deeper) == projections
    for name in projections:
        ours, theirs = model.get_parameter(name), deeper.get_parameter(name)
        torch.testing.assert_close(ours * math.sqrt(2 * 2), theirs * math.sqrt(2 * 3))


# Existing runs started from these weights. The fingerprint notices a change of them.
def test_golden_weights(model: GPT):
    first = {
        name: model.get_parameter(name).flatten()[:2].tolist()
        for name in ("token_embedding.weight", "output.weight", "blocks.0.attention.projection.weight")
    }
    assert first == {
        "token_embedding.weight": [0.00816505029797554, 0.01647738553583622],
        "output.weight": [0.003324919380247593, 0.010987509973347187],
        "blocks.0.attention.projection.weight": [-0.0014491189504042268, -0.008318673819303513],
    }
