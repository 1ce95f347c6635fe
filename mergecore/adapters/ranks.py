"""How the rank of each matrix is chosen: by number, by the energy that it keeps, or by a budget for all of them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mergecore.errors import ConfigError

DEFAULT_RANK = 16
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([KMB]?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True, slots=True)
class FixedRank:
    """The same rank for every matrix, or the largest that it can have."""

    rank: int

    def __str__(self) -> str:
        return f"rank {self.rank}"


@dataclass(frozen=True, slots=True)
class EnergyShare:
    """For every matrix the least rank that keeps this share of the squares of its singular values."""

    share: float

    def __str__(self) -> str:
        return "full rank" if self.share == 1 else f"{self.share:.4g} of the energy of each matrix"

    def rank(self, energies: Sequence[float], total: float) -> int | None:
        """Of a matrix with these leading energies and this total; None if they aren't enough."""
        kept = accumulate(energies)
        return next((i for i, energy in enumerate(kept, start=1) if energy >= self.share * total), None)


@dataclass(frozen=True, slots=True)
class Budget:
    """So many numbers in all factors together, given where they keep the most energy."""

    parameters: int

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters in all"

    def ranks(self, energies: Mapping[str, Sequence[float]], costs: Mapping[str, int]) -> dict[str, int]:
        """The rank of each matrix, by name, from its leading energies and the parameters that a rank costs.

        Directions are taken by falling energy per parameter while they fit; of equal ones the first matrix's. A matrix
        whose next one doesn't fit gets no more, while others may.
        """
        ranks = dict.fromkeys(energies, 0)
        left = self.parameters
        names = list(energies)
        queue = [(-energies[name][0] / costs[name], i) for i, name in enumerate(names) if energies[name]]
        heapq.heapify(queue)
        while queue:
            _, i = heapq.heappop(queue)
            name = names[i]
            if costs[name] > left:
                continue
            left -= costs[name]
            ranks[name] += 1
            if ranks[name] < len(energies[name]):
                heapq.heappush(queue, (-energies[name][ranks[name]] / costs[name], i))
        return ranks


Rule = FixedRank | EnergyShare | Budget


def rule_of(rank: int | None, energy: float | None, budget: str | int | None) -> Rule:
    """The one that was asked for; rank 16, if none was. Raises ConfigError."""
    given = [
        option for option, value in (("--rank", rank), ("--energy", energy), ("--budget", budget)) if value is not None
    ]
    if len(given) > 1:
        raise ConfigError.at(
            given[1], f"can't be combined with {given[0]}", "give one of --rank, --energy and --budget"
        )
    if energy is not None:
        if not 0 < energy <= 1:
            raise ConfigError.at("--energy", f"`{energy:g}` is not a share", "0.95 keeps 95 %, 1 keeps all")
        return EnergyShare(energy)
    if budget is not None:
        return Budget(_count(budget))
    if rank is not None and rank < 1:
        raise ConfigError.at("--rank", f"`{rank}` is not a rank", "1 is the least, 16 is usual")
    return FixedRank(DEFAULT_RANK if rank is None else rank)


def options_of(rule: Rule) -> dict[str, int | float]:
    """The argument of `rule_of` that gives this rule, by its name."""
    if isinstance(rule, FixedRank):
        return {"rank": rule.rank}
    return {"energy": rule.share} if isinstance(rule, EnergyShare) else {"budget": rule.parameters}


def _count(text: str | int) -> int:
    """`5M` is 5·10⁶. Raises ConfigError."""
    match = _COUNT.fullmatch(str(text).strip())
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if count < 1:
        raise ConfigError.at("--budget", f"`{text}` is not a number of parameters", "write it like 500K, 20M or 1.5B")
    return count
