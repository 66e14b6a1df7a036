"""How far a split of the team's reward can be trusted, with and without the truth to compare with.

Shapes: K refits of the ensemble, N agents, H held-out transitions, V variables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.credit.coverage import exploration, overlap
from offmarl.credit.heads import FittedFunctions
from offmarl.credit.locality import Locality, measure_locality
from offmarl.credit.samples import Samples, varies

IDENTIFIED = "identified"
SHARED_TERM = "identified up to a shared term"
EQUAL_SPLIT = "not identified: equal split"
DECLARED_SHARED = "shared reward: equal split is exact"
UNPROBED = "not tested: needs 3 members or more"  # whether another answer explains the data as well
KEPT = "not identified: kept as you asked"  # a fall-back was wanted but switched off

AMBIGUOUS = 0.4  # A_i above which two equally good answers differ noticeably (disjoint causes measured .1-.4)
DISPUTED = 0.6  # κ_i below which refits disagree too much (spread .54-.84, shared terms in few rows .67-.78)
CONVENTIONAL = 0.8  # mean A_i above which most of the split is a convention, not a finding
# Expected skill below which R/N is the better answer. It errs towards doubt: of 3,000 rows it was .07 to .59 where the
# skill was .39 to .73, on two structures each of b1, b2, c and c2; and of nonlocal it knows nothing (.08 to .61, -.6).
WORTHWHILE = 0.0
WORTHWHILE_CONVENTION = 0.4  # where most of the split is a convention (spread measured -1.6 to .2)
CONTESTED = 0.1  # share of R above which owners are hardly who is paid (measured 0-.09; not paid .09-.41)

# From here on the split stands, and the reader is told:
REPRODUCIBLE = 0.8  # κ_i (good ones measured .98 and more)
POOR_FIT = 0.8  # expected skill
LOCAL = 0.8  # S
OVERLOOKED = 0.03  # share of R in interactions left out (measured 0, or .06-.07 for one lost edge)
FIXED_RULE = 0.05  # exploration


@dataclass(frozen=True)
class Diagnosis:
    """Measured on held-out transitions, before rewards are made to add up exactly."""

    fit_r2: float  # of Σ_i r̂_i against R
    expected_skill: float  # estimate of 1 - MSE(r̂)/MSE(R/N), without the truth, if owners are who is paid
    expected_error: float  # likewise of the root mean square error of an agent's reward, in units of R
    probed_skill: float | None  # the expected skill where the truth is what a probe says; None without probes
    ambiguity: tuple[float | None, ...]  # A_i, [N]; None without probes
    reproducibility: tuple[float | None, ...]  # κ_i, [N]; None with a single refit
    std_median: float | None  # over agents and transitions, of the ensemble; ranks errors but is too small
    locality: Locality
    exploration: tuple[float, ...]  # [N] share of an agent's actions that what it saw does not explain
    overlap: tuple[float, ...]  # [N] how well an agent's causes can be told from others' variables
    episodes: int  # fitted
    varying: float  # share of all variables that vary at all
    alive: float  # share of the agents, over held-out transitions

    @property
    def team_locality(self) -> float | None:
        """S = R² of functions of own and nobody's variables / R² known to be possible; None without a fit."""
        possible = self.fit_r2 + self.locality.overlooked
        return min(1.0, self.locality.team_r2 / possible) if possible > 0 else None

    def metrics(self) -> dict[str, float | None]:
        """Figures of the whole split, by name."""
        return {
            "fit_r2": self.fit_r2,
            "expected_skill": self.expected_skill,
            "expected_error": self.expected_error,
            "probed_skill": self.probed_skill,
            "std_median": self.std_median,
            "locality": self.team_locality,
            "overlooked": self.locality.overlooked,
            "contested": sum(self.locality.contested),
            "exploration": min(self.exploration),
            "overlap": max(self.overlap),
            "episodes": float(self.episodes),
            "varying": self.varying,
        }

    def reason_to_fall_back(self, agents: Sequence[str]) -> str:
        """Why R/N is the better answer, empty where it is not."""
        if unknown := self._not_finite(agents):
            return f"some figures could not be computed on the held-out transitions ({unknown}): too few, or too alike"
        if doubtful := self._reproducible_below(DISPUTED, agents):
            return (
                "refits on resampled episodes disagree about who earned what (reproducibility below "
                f"{DISPUTED}: {doubtful})"
            )
        contested = sum(self.locality.contested)
        if contested > CONTESTED:
            who = [name for name, share in zip(agents, self.locality.contested, strict=True) if share > 0]
            return (
                f"{contested:.0%} of the team reward comes from variables of two agents acting together, and the "
                f"data does not say which of the two is paid (in the rewards of {', '.join(who)}): rewards seem to "
                "have little to do with who owns a variable. If the owners are wrong, give the right ones"
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

    def _not_finite(self, agents: Sequence[str]) -> str:
        """Names of the figures that came out as no number."""
        figures = self.metrics()
        figures |= {f"ambiguity of {who}": a for who, a in zip(agents, self.ambiguity, strict=True)}
        figures |= {
            f"reproducibility of {who}": kappa
            for who, kappa in zip(agents, self.reproducibility, strict=True)
        }
        return ", ".join(
            name for name, value in figures.items() if value is not None and not math.isfinite(value)
        )

    def _reproducible_below(self, limit: float, agents: Sequence[str]) -> str:
        """Name the agents whose κ_i is less, with it."""
        known = zip(agents, self.reproducibility, strict=True)
        return ", ".join(
            f"{name} {kappa:.2f}" for name, kappa in known if kappa is not None and kappa < limit
        )

    def cautions(self, agents: Sequence[str]) -> list[str]:
        """What a reader of a split that stands should know."""
        found = []
        if self.expected_skill < POOR_FIT:
            found.append(
                f"an agent's reward may be wrong by {self.expected_error:.3g} (root mean square): held-out R² is "
                f"{self.fit_r2:.2f}, {sum(self.locality.contested):.0%} of the team reward could as well be another "
                f"agent's, expected skill {self.expected_skill:.2f}"
            )
        elif self.probed_skill is not None and self.probed_skill < POOR_FIT:
            found.append(
                "what several agents could be paid for is shared out among them; if it is some of theirs only, as in "
                f"the answer of a probe, which explains the team reward as well, the expected skill is "
                f"{self.probed_skill:.2f} instead of {self.expected_skill:.2f}"
            )
        if partly := self._reproducible_below(REPRODUCIBLE, agents):
            found.append(f"refits on resampled episodes agree only in part (reproducibility: {partly})")
        local = self.team_locality
        if local is not None and local < LOCAL:
            found.append(
                f"only {local:.0%} of what can be explained depends on agents one by one (locality); for the rest "
                "variables of several agents act together, and the split is right only if each is paid for its own"
            )
        if self.locality.overlooked > OVERLOOKED:
            found.append(
                f"{self.locality.overlooked:.0%} of the team reward depends on the variables in a way that the "
                "split does not see"
            )
        if self.alive < 1:
            found.append(
                f"agents die ({1 - self.alive:.0%} of them are dead in the mean): the dead earn nothing here, so that "
                "what a task pays to all, such as a victory, goes to the living"
            )
        fixed = [name for name, share in zip(agents, self.exploration, strict=True) if share < FIXED_RULE]
        if fixed:
            found.append(
                f"the actions of {', '.join(fixed)} follow from what they saw: the data does not show what other "
                "actions would have earned"
            )
        return found

    def verdict(self, agent: int) -> str:
        """What is known about one agent, where the split as a whole stands."""
        ambiguity = self.ambiguity[agent]
        if ambiguity is None:
            return UNPROBED
        of_its_own = self.locality.contested[agent] * len(
            self.ambiguity
        )  # an agent has about 1/N of R's variance
        return SHARED_TERM if ambiguity > AMBIGUOUS or of_its_own > AMBIGUOUS**2 else IDENTIFIED


def diagnose(
    samples: Samples, fitted: FittedFunctions, plain: int, kinds: tuple[Tensor, Tensor], seed: int
) -> Diagnosis:
    """What held-out transitions say about an ensemble whose first `plain` members are the estimate.

    The others are pairs of probes with opposed tie-breaks. `kinds` says which of all variables are actions and
    which are successors, a bool each. The truth is not looked at.
    """
    members = fitted.predict(samples.heldout_inputs, samples.heldout_alive)  # [M, N, H]
    point, team_reward = members[:plain].mean(0), samples.heldout_team_reward
    probes = members[plain:].unflatten(0, (-1, 2))  # [P, 2, N, H]
    varying, unit = samples.scale.varying, samples.scale.reward_std
    action, successor = (kind.to(varying.device)[varying] for kind in kinds)
    edges = torch.zeros_like(samples.own).scatter_(1, fitted.heads.variables, (fitted.gates > 0).any(0))
    unknown: tuple[None, ...] = (None,) * len(point)
    several = len(members) > 1
    locality = measure_locality(samples, fitted, plain, seed)
    contested = sum(locality.contested)
    apart = disagreement(probes[:, 0], probes[:, 1])
    return Diagnosis(
        fit_r2=r_squared(point.sum(0), team_reward),
        expected_skill=expected_skill(point, team_reward, contested),
        expected_error=unit * expected_error(point, team_reward, contested),
        probed_skill=expected_skill(point, team_reward, contested, apart) if len(probes) else None,
        ambiguity=tuple(ambiguity(probes[:, 0], probes[:, 1], point).tolist()) if len(probes) else unknown,
        reproducibility=tuple(reproducibility(members).tolist()) if several else unknown,
        std_median=unit * float(members.std(0).median()) if several else None,
        locality=locality,
        exploration=tuple(exploration(samples, action, successor, seed)),
        overlap=tuple(overlap(samples, edges)),
        episodes=int(samples.episode.max()) + 1,
        varying=len(varying) / len(kinds[0]),
        alive=float(samples.heldout_alive.float().mean()),
    )


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """Share of the variance of `target` [H] that `predicted` [H] explains, both centred."""
    error = (predicted - target).double()
    return 1 - float(error.var() / target.double().var())


def ambiguity(first: Tensor, second: Tensor, point: Tensor) -> Tensor:
    """A_i = sd(r̂_i of one probe - of the other) / sd(r̂_i), the largest over pairs; [P, N, H] x 2, [N, H] -> [N]."""
    return (first - second).std(-1).amax(0) / point.std(-1).clamp(min=1e-9)


def disagreement(first: Tensor, second: Tensor) -> float:
    """Mean square error of the split half-way between two probes [P, N, H] if one is right; the worst pair's."""
    half = (first - second).double() / 2
    return float(half.var(-1).mean(-1).amax(0)) if len(half) else 0.0


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


def expected_error(point: Tensor, team_reward: Tensor, contested: float = 0.0) -> float:
    """Root mean square error of an agent's reward, from the split [N, H] itself and the team's [H].

    If the unexplained part of R is made of independent errors of the agents, an exact sum leaves each with
    (N - 1)/N² of its variance. A contested term (a share `contested` of the variance of R) is taken to be
    another agent's: it is then missing there and too much here.
    """
    N = len(point)
    unexplained = float((team_reward - point.sum(0)).double().var())
    misplaced = 2 * contested * float(team_reward.double().var()) / N
    return math.sqrt(unexplained * (N - 1) / N**2 + misplaced)


def expected_skill(point: Tensor, team_reward: Tensor, contested: float = 0.0, apart: float = 0.0) -> float:
    """Estimate of 1 - MSE(r̂)/MSE(R/N) like `expected_error`; R/N is off by the variance of r_i - mean_j r_j.

    `apart` is a mean square error that comes on top.
    """
    individual = float((point - point.mean(0)).double().var(1).mean())
    error = expected_error(point, team_reward, contested) ** 2 + apart
    return 1 - error / max(individual, 1e-12)


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
    paid = varies(truth)  # [N]
    naive_error = float((naive - r).square().mean())
    decidable = naive_error > 1e-10 * float(spread.mean()) and bool(paid.any())
    pearson = (r * estimate).mean(0) / (spread.sqrt() * estimate.square().mean(0).sqrt()).clamp(min=1e-300)
    beta = torch.linalg.lstsq(r, estimate, driver="gelsd").solution  # [N, N]: of true j in the estimate of i
    hijacked = (beta.diagonal() < 0.5)[paid].double()
    return {
        "pearson": float(pearson[paid].mean()) if paid.any() else None,
        "r2": float((1 - error / spread.clamp(min=1e-300))[paid].mean()) if paid.any() else None,
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
