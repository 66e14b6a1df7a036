"""How much of a finished split rests on agents acting together, and whether the data says who is paid for it.

A split is sure of itself where rewards are local, each a function of the agent's own variables and of nobody's.
A term of two agents' variables, x_i · x_j, could be either's: that r̂_i uses a variable of agent j is a finding
only where it acts on more of agent i's own variables than the other way round, so that agent j would need more
foreign variables to write the same term. And interactions that the split left out show that it is not the
whole story.

Shapes: n fitted and H held-out transitions, N agents, V variables that vary, K variables that a head looks at,
M members, B batch.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offmarl.credit.heads import FittedFunctions, RewardHeads, minimise, variables_seen
from offmarl.credit.samples import Samples
from offmarl.streams import stream

MOST_ROWS = 20_000  # fitted transitions looked at; 50,000 measured the same
STEPS, BATCH_SIZE, LEARNING_RATE, WARM_UP = (
    400,
    256,
    1e-2,
    50,
)  # 2,000 steps fit the noise; rate as the refit's
LOCAL_WIDTH, FREE_WIDTH, DEPTH = 48, 128, 2  # a head as in the structure; the free one as the team's model
FOLLOWS_TEAM, FOLLOWS_AGENTS = 0, 1  # members of the local fit
RESAMPLED_ROWS = 500  # held-out transitions on which variables are exchanged for those of another transition
MOST_FOREIGN = 8  # variables of others looked at in a head, the strongest
PARTNER = 0.3  # an interaction counts from this share of the variable's strongest on (measured .8-1 or < .1)


@dataclass(frozen=True)
class Locality:
    """Shares of variance on held-out transitions."""

    agents: tuple[float, ...]  # [N] of r̂_i that agent i's own and nobody's variables explain
    team_r2: float  # of R that a sum of such functions explains
    overlooked: float  # of R that a free function of all variables explains beyond the split
    contested: tuple[float, ...]  # [N] of R: terms in r̂_i that another agent could be paid for just as well


def measure_locality(samples: Samples, fitted: FittedFunctions, plain: int, seed: int) -> Locality:
    """Look at the mean of the first `plain` members of a fit; it costs a few seconds, whatever the data's size."""
    rows = torch.randperm(len(samples.inputs), generator=stream(seed, "locality", "rows"))[:MOST_ROWS]
    rows = rows.to(samples.inputs.device)
    fit = _Part(samples.inputs[rows], samples.team_reward[rows], samples.alive[rows])
    heldout = _Part(samples.heldout_inputs, samples.heldout_team_reward, samples.heldout_alive)
    near = samples.own | samples.shared  # [N, V]
    local = replace(fitted, gates=fitted.gates * near.gather(1, fitted.heads.variables))
    point = [fitted.predict(part.inputs, part.alive)[:plain].mean(0) for part in (fit, heldout)]
    overlooked = _free_fit(fit, heldout, point[0], point[1], seed)

    edges = torch.zeros_like(near).scatter_(1, fitted.heads.variables, (fitted.gates > 0).any(0))
    reaches = (edges & ~near).any(1)  # [N] uses a variable of another agent
    if not reaches.any():
        team_r2 = _explained(point[1].sum(0), heldout.team_reward)
        return Locality((1.0,) * len(near), team_r2, overlooked, (0.0,) * len(near))
    alone = [local.predict(part.inputs, part.alive)[:plain].mean(0) for part in (fit, heldout)]
    follows_team, follows_agents = _local_fit(fit, heldout, point[0], alone, near & edges.any(0), seed)
    agents = [
        _explained(follows_agents[agent], point[1][agent]) if reaches[agent] else 1.0
        for agent in range(len(near))
    ]
    contested = [
        _contested(samples, _only(fitted, agent, plain), agent, edges[agent] & ~near[agent], seed)
        for agent in range(len(near))
    ]
    team_r2 = _explained(follows_team.sum(0), heldout.team_reward)
    return Locality(tuple(agents), team_r2, overlooked, tuple(contested))


@dataclass(frozen=True)
class _Part:
    """Some transitions."""

    inputs: Tensor  # [n, V]
    team_reward: Tensor  # [n]
    alive: Tensor  # [n, N]


def _free_fit(fit: _Part, heldout: _Part, point: Tensor, heldout_point: Tensor, seed: int) -> float:
    """Share of the variance of R that one network on all variables finds in R - Σ r̂; [N, n] and [N, H]."""
    residual = fit.team_reward - point.sum(0)
    heldout_residual = heldout.team_reward - heldout_point.sum(0)
    size = residual.std().clamp(min=1e-6)
    everything = torch.arange(fit.inputs.shape[1], device=fit.inputs.device)[None]
    gates = torch.ones(1, 1, everything.shape[1], device=fit.inputs.device)
    generator = stream(seed, "locality", "free")
    head = RewardHeads(everything, gates.sum(2), FREE_WIDTH, DEPTH, generator)

    def loss(step: int) -> Tensor:
        batch = torch.randint(len(residual), (1, BATCH_SIZE), generator=generator).to(residual.device)
        return (head(fit.inputs[batch], gates.unsqueeze(1))[:, 0] - residual[batch] / size).square().mean()

    minimise(loss, [(head.parameters, LEARNING_RATE / 2)], range(STEPS), STEPS, WARM_UP)
    found = _explained(head.predict(heldout.inputs, gates)[0, 0] * size, heldout_residual)
    return found * float(heldout_residual.double().var() / heldout.team_reward.double().var())


def _local_fit(
    fit: _Part, heldout: _Part, point: Tensor, alone: list[Tensor], near: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Sums over the agents' own and nobody's variables, `near` [N, V] bool, that follow R and each r̂_i: [N, H].

    They start from the split itself with the other agents' variables at their means, `alone` [N, n] and [N, H],
    and learn what is to be added.
    """
    variables, counts = variables_seen(near)  # [N, K]
    gates = counts.float().expand(2, -1, -1)
    generator = stream(seed, "locality", "local")
    heads = RewardHeads(variables, gates.sum(2), LOCAL_WIDTH, DEPTH, generator)
    size = point.std(1, keepdim=True).clamp(min=1e-6)
    gap, gaps = fit.team_reward - alone[0].sum(0), (point - alone[0]) / size  # [n], [N, n]

    def loss(step: int) -> Tensor:
        batch = torch.randint(len(gap), (1, BATCH_SIZE), generator=generator).to(gap.device)
        added = heads(fit.inputs[batch], gates.unsqueeze(1)) * fit.alive[batch].mT  # [2, N, B]
        team = (added[FOLLOWS_TEAM].sum(0) - gap[batch[0]]).square().mean()
        return team + (added[FOLLOWS_AGENTS] / size - gaps[:, batch[0]]).square().mean(1).sum()

    minimise(loss, [(heads.parameters, LEARNING_RATE)], range(STEPS), STEPS, WARM_UP)
    added = heads.predict(heldout.inputs, gates) * heldout.alive.T
    return alone[1] + added[FOLLOWS_TEAM], alone[1] + added[FOLLOWS_AGENTS]


def _only(fitted: FittedFunctions, agent: int, members: int) -> FittedFunctions:
    """The function of one agent in the first `members` members, uncentred."""
    return FittedFunctions(fitted.heads.only(agent, members), fitted.gates[:members, agent : agent + 1])


def _contested(samples: Samples, head: FittedFunctions, agent: int, foreign: Tensor, seed: int) -> float:
    """Share of the variance of R that r̂_i owes to `foreign` variables [V] bool which it uses no better than others.

    Variable v of agent j is contested where it interacts with no more of agent i's own variables than agent j
    has foreign ones in the same term. Interactions are second differences under exchanged values:
    E[(f - f_u - f_v + f_uv)²]/4 is the variance of a product term.
    """
    if not foreign.any():
        return 0.0
    inputs = samples.heldout_inputs
    generator = stream(seed, "locality", "exchange", str(agent))
    rows, others = (
        torch.randint(len(inputs), (RESAMPLED_ROWS,), generator=generator).to(inputs.device) for _ in range(2)
    )

    def value(*exchanged: int) -> Tensor:
        """r̂_i [rows] with the values of some variables from other transitions."""
        mixed = inputs[rows]
        mixed[:, exchanged] = inputs[others][:, exchanged]
        return head.heads.predict(mixed, head.gates)[:, 0].mean(0)

    used = head.heads.variables[0][(head.gates > 0).any(0)[0]].tolist()
    plain, single = value(), {variable: value(variable) for variable in used}
    effect = {v: float((plain - single[v]).square().mean()) for v in foreign.nonzero().squeeze(1).tolist()}
    strongest = sorted(effect, key=lambda variable: -effect[variable])[:MOST_FOREIGN]
    contested = []
    for v in strongest:
        partners = {
            u: float((plain - single[u] - single[v] + value(u, v)).square().mean()) for u in used if u != v
        }
        enough = PARTNER * max(partners.values(), default=0.0)
        acts_on = torch.tensor([u for u in partners if partners[u] > enough], dtype=torch.long)
        owner = samples.own[:, v]  # [N]
        own = int(samples.own[agent, acts_on].sum())
        alike = 1 + int(samples.own[owner][:, acts_on].sum())
        if own <= alike:
            contested.append(v)
    size = float((plain - value(*contested)).square().mean()) / 2 if contested else 0.0
    return size / float(samples.heldout_team_reward.double().var())


def _explained(predicted: Tensor, target: Tensor) -> float:
    """Share of the variance of `target` [H], from 0 to 1; a target that never varies is explained."""
    variance = float(target.double().var())
    if variance < 1e-12:
        return 1.0
    return min(1.0, max(0.0, 1 - float((predicted - target).double().var()) / variance))
