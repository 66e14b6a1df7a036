"""How far a split of the team's reward can be trusted, with and without the truth to compare with.

Shapes: K refits of the ensemble, N agents, H held-out transitions, V variables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IDENTIFIED = "identified"
SHARED_TERM = "identified up to a shared term"
EQUAL_SPLIT = "not identified: equal split"
DECLARED_SHARED = "shared reward: equal split is exact"

AMBIGUOUS = 0.4  # A_i above which two equally good answers differ noticeably (disjoint causes measured .1-.4)
REPRODUCIBLE = 0.8  # κ_i below which refits disagree about who earned what (good ones measured .98 and more)
CONVENTIONAL = 0.8  # mean A_i above which most of the split is a convention, not a finding
WORTHWHILE = 0.3  # expected skill below which R/N is the safer answer ...
WORTHWHILE_CONVENTION = (
    0.6  # ... where most of the split is a convention (shared term measured .9, spread .2)
)


@dataclass(frozen=True)
class Diagnosis:
    """Measured on held-out transitions, before rewards are made to add up exactly."""

    fit_r2: float  # of Σ_i r̂_i against R
    expected_skill: float  # lower estimate of 1 - MSE(r̂)/MSE(R/N), without the truth
    ambiguity: tuple[float | None, ...]  # A_i, [N]; None without probes
    reproducibility: tuple[float | None, ...]  # κ_i, [N]; None with a single refit

    def reason_to_fall_back(self, agents: Sequence[str]) -> str:
        """Why R/N is the better answer, empty where it is not."""
        doubtful = [
            f"{name} {kappa:.2f}"
            for name, kappa in zip(agents, self.reproducibility, strict=True)
            if kappa is not None and kappa < REPRODUCIBLE
        ]
        if doubtful:
            return (
                "refits on resampled episodes disagree about who earned what (reproducibility below "
                f"{REPRODUCIBLE}: {', '.join(doubtful)})"
            )
        known = [value for value in self.ambiguity if value is not None]
        conventional = bool(known) and sum(known) / len(known) > CONVENTIONAL
        needed = WORTHWHILE_CONVENTION if conventional else WORTHWHILE
        if self.expected_skill < needed:
            return (
                f"the fit leaves too much of the team reward unexplained (held-out R² {self.fit_r2:.2f}) for how "
                f"little the agents' rewards differ (expected skill {self.expected_skill:.2f}, needs {needed})"
            )
        return ""

    def verdict(self, agent: int) -> str:
        """What is known about one agent, where the split as a whole stands."""
        ambiguity = self.ambiguity[agent]
        return SHARED_TERM if ambiguity is not None and ambiguity > AMBIGUOUS else IDENTIFIED


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """Share of the variance of `target` [H] that `predicted` [H] explains, both centred."""
    error = (predicted - target).double()
    return 1 - float(error.var() / target.double().var())


def ambiguity(first: Tensor, second: Tensor, point: Tensor) -> Tensor:
    """A_i = sd(r̂_i of one probe - of the other) / sd(r̂_i); [N, H] each -> [N]."""
    return (first - second).std(1) / point.std(1).clamp(min=1e-9)


def reproducibility(members: Tensor) -> Tensor:
    """κ_i = C / (C + (V - C)/K) of r̂_i - mean_j r̂_j over refits [K, N, H] -> [N].

    C is the mean covariance between refits, V their mean variance: the reliability of the mean of K refits.
    """
    K = len(members)
    difference = (members - members.mean(1, keepdim=True)).double()
    difference = difference - difference.mean(2, keepdim=True)
    covariance = torch.einsum("knh,lnh->nkl", difference, difference) / (members.shape[2] - 1)  # [N, K, K]
    V = covariance.diagonal(dim1=1, dim2=2).mean(1)
    C = ((covariance.sum((1, 2)) - K * V) / (K * (K - 1))).clamp(min=0)
    return C / (C + (V - C) / K).clamp(min=1e-12)


def expected_skill(point: Tensor, team_reward: Tensor) -> float:
    """Estimate of 1 - MSE(r̂)/MSE(R/N) from the split [N, H] itself and the reward [H].

    If the unexplained part of R is made of independent errors of the agents, an exact sum leaves each with
    (N - 1)/N² of its variance; R/N is off by the variance of r_i - mean_j r_j.
    """
    N = len(point)
    unexplained = (team_reward - point.sum(0)).double().var()
    individual = (point - point.mean(0)).double().var(1).mean()
    return 1 - float(unexplained * (N - 1) / N**2 / individual.clamp(min=1e-12))


def agreement_with_truth(
    reward: Tensor,
    truth: Tensor,
    team_reward: Tensor,
    masks: Tensor | None = None,
    input_names: Sequence[str] = (),
    causes: Sequence[Sequence[str]] | None = None,
    equal: bool = False,
) -> dict[str, float | None]:
    """Agreement of a split [H, N] with the true one [H, N] on the same transitions, centred per agent.

    `pearson` and `r2` are means over agents whose reward varies; `skill` = 1 - MSE(r̂)/MSE(R/N) (0: no better
    than the equal split, 1: perfect); `hijack` is the share of agents j with β_jj < 1/2 in
    r̂_i ≈ Σ_j β_ji r_j, whose reward another head explains; `f1` compares the masks [N, V] with the true
    `causes`. None stands for what is undefined: `hijack` of an `equal` split, `skill` where R/N is exact.
    """
    r, estimate = _centred(truth), _centred(reward)
    naive = _centred(team_reward[:, None] / truth.shape[1])
    spread, error = r.square().mean(0), (estimate - r).square().mean(0)  # [N]
    varies = spread > 1e-10 * (1 + truth.double().square().mean(0))
    naive_error = float((naive - r).square().mean())
    decidable = naive_error > 1e-10 * float(spread.mean()) and bool(varies.any())
    pearson = (r * estimate).mean(0) / (spread * estimate.square().mean(0)).sqrt().clamp(min=1e-12)
    beta = torch.linalg.lstsq(r, estimate, driver="gelsd").solution  # [N, N]: of true j in the estimate of i
    hijacked = (beta.diagonal() < 0.5)[varies].double()
    return {
        "pearson": float(pearson[varies].mean()) if varies.any() else None,
        "r2": float((1 - error / spread.clamp(min=1e-300))[varies].mean()) if varies.any() else None,
        "skill": 1 - float(error.mean()) / naive_error if decidable else None,
        "hijack": float(hijacked.mean()) if decidable and not equal else None,
        "f1": _mask_f1(masks, input_names, causes),
    }


def _centred(reward: Tensor) -> Tensor:
    reward = reward.double()
    return reward - reward.mean(0)


def _mask_f1(
    masks: Tensor | None, input_names: Sequence[str], causes: Sequence[Sequence[str]] | None
) -> float | None:
    """F1 of the edges of all agents together, None where masks or causes are unknown."""
    if masks is None or causes is None:
        return None
    found = {(agent, input_names[k]) for agent, k in masks.nonzero().tolist()}
    true = {(agent, name) for agent, names in enumerate(causes) for name in names}
    return 2 * len(found & true) / (len(found) + len(true)) if found or true else 1.0
