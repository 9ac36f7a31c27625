import math

import numpy as np
import pytest
from pandas import DataFrame

from analysis import optimum


def test_the_vertex_of_an_exact_parabola_is_found() -> None:
    rates = np.array([1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    losses = 5 + (np.log(rates) - math.log(7e-4)) ** 2
    assert optimum.vertex(rates, losses) == pytest.approx(7e-4)
    assert optimum.vertex(rates[::-1], losses[::-1]) == pytest.approx(7e-4)


@pytest.mark.parametrize(
    "losses", [[1, 2, 3], [3, 2, 1], [2, 1, math.inf], [math.nan, 1, 2], [math.inf, math.inf, math.inf], [1], []]
)
def test_there_is_no_optimum_at_the_edge_or_beside_a_non_finite_loss(losses: list[float]) -> None:
    assert math.isnan(optimum.vertex([1e-3, 2e-3, 4e-3][: len(losses)], losses))


def test_each_seeds_optimum_is_a_replicate() -> None:
    rates = [1e-4, 1e-3, 1e-2]
    rows = [
        {"seed": seed, "train.learning_rate": rate, "value": (math.log(rate) - math.log(best)) ** 2}
        for seed, best in enumerate((5e-4, 1e-3, 2e-3))
        for rate in rates
    ]
    estimate = optimum.over_seeds(DataFrame(rows))
    assert estimate.mean == pytest.approx(1e-3)
    # logarithms −ln 2, 0, ln 2 around the mean: standard error ln 2 / √3, t = 4.3027
    assert math.log(estimate.high / estimate.mean) == pytest.approx(4.302653 * math.log(2) / math.sqrt(3), rel=1e-6)
    assert estimate.n == 3


def test_the_optimum_is_nan_if_a_seed_has_none() -> None:
    rows = [{"seed": 0, "train.learning_rate": rate, "value": rate} for rate in (1.0, 2.0, 3.0)]
    assert math.isnan(optimum.over_seeds(DataFrame(rows)).mean)
    assert math.isnan(optimum.over_seeds(DataFrame(rows, columns=list(rows[0])).head(0)).mean)
