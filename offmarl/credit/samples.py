"""Standardised samples of a dataset for fitting a decomposition, split by whole episodes.

Shapes: n fitted and H held-out transitions, N agents, V variables that vary, M members of an ensemble.
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.credit.inputs import InputLayout, input_layout, transition_inputs
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.streams import stream

NEVER_VARIES = 1e-6  # standard deviation, relative to 1 + |mean|, below which a variable is a constant
ROUNDING = torch.finfo(torch.float32).eps  # relative to |mean|: a smaller standard deviation is rounding


@dataclass
class Samples:
    """What a decomposer fits, in standard deviations of the fitted part; constants are left out."""

    inputs: Tensor  # [n, V]
    team_reward: Tensor  # [n]
    alive: Tensor  # [n, N] float, 0 where an agent is dead and earns nothing
    episode: Tensor  # [n] int64, 0 ... episodes - 1
    rows: Tensor  # [n] int64, rows of the dataset
    heldout_inputs: Tensor  # [H, V]
    heldout_team_reward: Tensor  # [H]
    heldout_alive: Tensor  # [H, N]
    heldout_rows: Tensor  # [H] int64, rows of the dataset
    scale: "Scale"
    own: Tensor  # [N, V] bool: the variable is the agent's own
    shared: Tensor  # [V] bool: the variable is nobody's
    roles: list[Tensor]  # [members, k] int64 for each role: the same k own variables of agents that play it

    def resample_episodes(self, members: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw whole episodes with replacement: rows of `inputs` [M, longest], padded, and their number [M]."""
        episodes = int(self.episode.max()) + 1
        samples = torch.arange(len(self.episode), device=self.episode.device)
        drawn = []
        for _ in range(members):
            picks = torch.randint(episodes, (episodes,), generator=generator)
            times = torch.bincount(picks, minlength=episodes).to(self.episode.device)
            drawn.append(samples.repeat_interleave(times[self.episode]))
        size = torch.tensor([len(rows) for rows in drawn], device=self.episode.device)
        return torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True), size

    def by_ownership(self, own: float, nobodys: float, anothers: float) -> Tensor:
        """A value for each edge by whose variable it starts from: [N, V]."""
        return torch.where(self.own, own, torch.where(self.shared, nobodys, anothers))

    def interactions(self, residual: Tensor) -> Tensor:
        """How strongly `residual` [n] varies with variable v times an own variable of agent i: [N, V].

        |E[residual · own · v]|, the largest over the agent's own variables.
        """
        product = ((self.inputs * residual[:, None]).T @ self.inputs).abs() / len(residual)  # [V, V]
        return torch.stack([(product * own[:, None]).amax(0) for own in self.own])


@dataclass
class Scale:
    """How raw variables and rewards become standardised ones."""

    varying: Tensor  # [V] int64: which of all variables are kept
    input_mean: Tensor  # [V]
    input_std: Tensor  # [V]
    reward_mean: float
    reward_std: float  # 0 where the reward never changes

    def inputs(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Standardised variables [n, V] of the transitions that start in `rows` [n]."""
        raw = transition_inputs(transitions, rows.to(transitions.device)).to(self.varying.device)
        return (raw[:, self.varying] - self.input_mean) / self.input_std

    def team_reward(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Standardised team reward [n]."""
        raw = transitions.column("team_reward")[rows.to(transitions.device)].to(self.varying.device)
        return (raw - self.reward_mean) / (self.reward_std or 1.0)


def living(transitions: Transitions, rows: Tensor) -> Tensor:
    """Who is alive when the transitions in `rows` [n] start: [n, N] float, 1 or 0.

    Everybody where the data does not say; everybody, too, where nobody is: somebody must have earned the reward.
    """
    if "alive" not in transitions.columns:
        return torch.ones(1, 1, device=transitions.device).expand(len(rows), transitions.spec.n_agents)
    alive = transitions.column("alive")[rows.to(transitions.device)] > 0
    return (alive | ~alive.any(1, keepdim=True)).float()


def prepare(
    transitions: Transitions,
    heldout: float,
    max_transitions: int,
    seed: int,
    device: torch.device,
    layout: InputLayout | None = None,
) -> Samples:
    """Split, standardise and index the transitions; at least two episodes are needed.

    A share `heldout` of the episodes (one at least, never all) is held out, and so many of the others are fitted that
    their transitions do not exceed `max_transitions` (one at least). `layout` is the task's own unless given.
    """
    train_rows, episode, heldout_rows = split_episodes(transitions, heldout, max_transitions, seed)
    layout = layout or input_layout(transitions.spec)
    raw = transition_inputs(transitions, train_rows.to(transitions.device)).to(device)  # [n, all]
    # Constants go first: the means of a wider matrix are summed in another order.
    varying = (raw.amax(0) > raw.amin(0)).nonzero().squeeze(1)
    raw = raw[:, varying]
    mean = raw.mean(0)
    std = (raw.sub_(mean).square().sum(0) / (len(raw) - 1)).sqrt()
    enough = std > NEVER_VARIES * (1 + mean.abs())
    varying, mean, std = varying[enough], mean[enough], std[enough]
    team_reward = transitions.column("team_reward")[train_rows.to(transitions.device)].double()
    reward_mean = float(team_reward.mean())
    reward_std = float(team_reward.std()) if bool(varies(team_reward)) else 0.0
    scale = Scale(varying, mean, std, reward_mean, reward_std)
    kept = varying.cpu()
    return Samples(
        inputs=raw[:, enough].div_(std),
        team_reward=scale.team_reward(transitions, train_rows),
        alive=living(transitions, train_rows).to(device),
        episode=episode.to(device),
        rows=train_rows,
        heldout_inputs=scale.inputs(transitions, heldout_rows),
        heldout_team_reward=scale.team_reward(transitions, heldout_rows),
        heldout_alive=living(transitions, heldout_rows).to(device),
        heldout_rows=heldout_rows,
        scale=scale,
        own=layout.belongs(transitions.spec.n_agents)[:, kept].to(device),
        shared=layout.shared[kept].to(device),
        roles=[role.to(device) for role in _roles(transitions.spec, layout, kept)],
    )


def varies(values: Tensor) -> Tensor:
    """Whether the columns of `values` [n, ...] vary by more than float32 rounds their mean: [...] bool.

    In whatever unit: a reward of 1e-9 and one on top of a large constant vary too.
    """
    values = values.double()
    differs = values.amax(0) > values.amin(0)
    return differs & (values.std(0, correction=0) > ROUNDING * values.mean(0).abs())


def split_episodes(
    transitions: Transitions, heldout: float, max_transitions: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to fit [n], the number of their episode [n], and rows held out [H]; no episode is on both sides."""
    rows = transitions.transition_rows.cpu()
    episode = torch.bucketize(rows, transitions.episode_start.cpu(), right=True) - 1
    order = torch.randperm(transitions.n_episodes, generator=stream(seed, "credit", "split"))
    rank = order.argsort()[episode]  # place of each transition's episode in the random order
    length = torch.bincount(rank, minlength=transitions.n_episodes)
    n_heldout = min(max(1, round(heldout * transitions.n_episodes)), transitions.n_episodes - 1)
    total = length[n_heldout:].cumsum(0)
    n_train = max(1, int((total <= max_transitions).sum()))
    fitted = (rank >= n_heldout) & (rank < n_heldout + n_train)
    return rows[fitted], rank[fitted] - n_heldout, rows[rank < n_heldout][:max_transitions]


def _roles(spec: EnvSpec, layout: InputLayout, varying: Tensor) -> list[Tensor]:
    """Own variables of agents that play the same role and observe alike, one by one.

    Agents observe alike if each has every variable that varies for one of them; a constant tells nothing. Only
    where the variables are observations: dimensions of a global state have no layout to compare.
    """
    if spec.state_owner:
        return []
    place = {int(variable): k for k, variable in enumerate(varying)}
    roles = []
    for group in spec.groups:
        own = [_anonymous(layout, spec, agent) for agent in group]
        seen = [{name for name, variable in variables.items() if variable in place} for variables in own]
        alike = all(set().union(*seen) <= variables.keys() for variables in own)
        everywhere = [name for name in own[0] if all(name in names for names in seen)]
        if len(group) > 1 and alike and everywhere:
            roles.append(torch.tensor([[place[variables[name]] for name in everywhere] for variables in own]))
    return roles


def _anonymous(layout: InputLayout, spec: EnvSpec, agent: str) -> dict[tuple[str, int], int]:
    """An agent's own variables by a name that says neither which agent, nor which other agent, they are about.

    The number tells variables of one such name apart.
    """
    who = dict.fromkeys(spec.agents, "other") | {agent: "own"}
    found: dict[tuple[str, int], int] = {}
    times: Counter[str] = Counter()
    for variable in (layout.owner == spec.agents.index(agent)).nonzero().flatten().tolist():
        name = ".".join(who.get(part, part) for part in layout.names[variable].split("."))
        found[name, times[name]] = variable
        times[name] += 1
    return found
