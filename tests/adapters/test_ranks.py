"""How a budget is given to matrices."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mergecore.adapters.ranks import Budget, EnergyShare

spectra = st.lists(
    st.lists(st.integers(0, 1000).map(float), max_size=6).map(lambda e: sorted(e, reverse=True)), max_size=5
)


@given(spectra, st.integers(1, 200), st.integers(1, 9))
def test_at_equal_costs_the_largest_energies_are_kept(energies: list[list[float]], budget: int, cost: int) -> None:
    named = {str(i): values for i, values in enumerate(energies)}
    ranks = Budget(budget).ranks(named, dict.fromkeys(named, cost))
    kept = sorted(value for name, values in named.items() for value in values[: ranks[name]])
    everything = sorted(value for values in energies for value in values)
    assert kept == everything[max(len(everything) - budget // cost, 0) :]


@given(spectra, st.data(), st.integers(1, 200))
def test_no_better_direction_is_left_out_that_fits(
    energies: list[list[float]], data: st.DataObject, budget: int
) -> None:
    named = {str(i): values for i, values in enumerate(energies)}
    costs = {name: data.draw(st.integers(1, 20)) for name in named}
    ranks = Budget(budget).ranks(named, costs)
    left = budget - sum(costs[name] * rank for name, rank in ranks.items())
    assert left >= 0
    assert all(costs[name] > left for name, values in named.items() if ranks[name] < len(values))
    worst = min((named[n][rank - 1] / costs[n] for n, rank in ranks.items() if rank), default=0.0)
    for name, values in named.items():
        if ranks[name] < len(values) and values[ranks[name]] / costs[name] > worst:
            assert costs[name] > left  # it came when less was left than it takes


def test_the_least_rank_that_keeps_enough() -> None:
    assert EnergyShare(0.5).rank([4.0, 3.0, 2.0, 1.0], 10.0) == 2
    assert EnergyShare(0.95).rank([4.0, 3.0], 10.0) is None
