"""Standardised samples of a dataset for fitting a decomposition, split by whole episodes.

Shapes: n fitted and H held-out transitions, N agents, V variables that vary, M members of an ensemble.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.credit.inputs import InputLayout, input_layout, transition_inputs
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.streams import stream

NEVER_VARIES = 1e-6  # standard deviation, relative to 1 + |mean|, below which a variable is a constant


@dataclass
class Samples:
    """What a decomposer fits, in standard deviations of the fitted part; constants are left out."""

    inputs: Tensor  # [n, V]
    team_reward: Tensor  # [n]
    episode: Tensor  # [n] int64, 0 ... episodes - 1
    heldout_inputs: Tensor  # [H, V]
    heldout_team_reward: Tensor  # [H]
    heldout_rows: Tensor  # [H] int64, rows of the dataset
    scale: "Scale"
    own: Tensor  # [N, V] bool: the variable is the agent's own
    shared: Tensor  # [V] bool: the variable is nobody's
    roles: list[
        Tensor
    ]  # [members of the role, k] int64 each: the same k own variables of interchangeable agents

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


def prepare(
    transitions: Transitions, heldout: float, max_transitions: int, seed: int, device: torch.device
) -> Samples:
    """Split, standardise and index the transitions; at least two episodes are needed.

    A share `heldout` of the episodes (one at least) is held out, and so many of the others are fitted that
    their transitions do not exceed `max_transitions` (one at least).
    """
    train_rows, episode, heldout_rows = split_episodes(transitions, heldout, max_transitions, seed)
    layout = input_layout(transitions.spec)
    raw = transition_inputs(transitions, train_rows.to(transitions.device)).to(device)  # [n, all]
    mean, std = raw.mean(0), raw.std(0)
    varying = (std > NEVER_VARIES * (1 + mean.abs())).nonzero().squeeze(1)
    team_reward = transitions.column("team_reward")[train_rows.to(transitions.device)].double()
    reward_mean, reward_std = float(team_reward.mean()), float(team_reward.std())
    if reward_std <= NEVER_VARIES * (1 + abs(reward_mean)):
        reward_std = 0.0
    scale = Scale(varying, mean[varying], std[varying], reward_mean, reward_std)
    kept = varying.cpu()
    return Samples(
        inputs=(raw[:, varying] - scale.input_mean) / scale.input_std,
        team_reward=scale.team_reward(transitions, train_rows),
        episode=episode.to(device),
        heldout_inputs=scale.inputs(transitions, heldout_rows),
        heldout_team_reward=scale.team_reward(transitions, heldout_rows),
        heldout_rows=heldout_rows,
        scale=scale,
        own=layout.belongs(transitions.spec.n_agents)[:, kept].to(device),
        shared=layout.shared[kept].to(device),
        roles=[role.to(device) for role in _roles(transitions, layout, kept)],
    )


def split_episodes(
    transitions: Transitions, heldout: float, max_transitions: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to fit [n], the number of their episode [n], and rows held out [H]; no episode is on both sides."""
    rows = transitions.transition_rows.cpu()
    episode = torch.bucketize(rows, transitions.episode_start.cpu(), right=True) - 1
    order = torch.randperm(transitions.n_episodes, generator=stream(seed, "credit", "split"))
    rank = order.argsort()[episode]  # place of each transition's episode in the random order
    length = torch.bincount(rank, minlength=transitions.n_episodes)
    n_heldout = max(1, round(heldout * transitions.n_episodes))
    total = length[n_heldout:].cumsum(0)
    n_train = max(1, int((total <= max_transitions).sum()))
    fitted = (rank >= n_heldout) & (rank < n_heldout + n_train)
    return rows[fitted], rank[fitted] - n_heldout, rows[rank < n_heldout][:max_transitions]


def _roles(transitions: Transitions, layout: InputLayout, varying: Tensor) -> list[Tensor]:
    """Own variables of agents that play the same role and observe alike, position by position.

    Only where the variables are observations: dimensions of a global state have no layout to compare.
    """
    spec = transitions.spec
    if spec.state_owner:
        return []
    place = {int(variable): k for k, variable in enumerate(varying)}
    roles = []
    for group in spec.groups:
        agents = [spec.agents.index(name) for name in group]
        alike = len({_anonymous(spec, agent) for agent in agents}) == 1
        if len(agents) < 2 or not alike:
            continue
        own = torch.stack([(layout.owner == agent).nonzero().squeeze(1) for agent in agents])  # [members, k]
        everywhere = [column for column in own.T.tolist() if all(variable in place for variable in column)]
        if everywhere:
            roles.append(torch.tensor([[place[variable] for variable in column] for column in everywhere]).T)
    return roles


def _anonymous(spec: EnvSpec, agent: int) -> tuple[str, ...]:
    """Names of an agent's variables without saying which other agent they are about."""
    names = spec.obs_names[agent] + spec.action_names[agent]
    subjects = (name.partition(".") for name in names)
    return tuple(
        f"other.{rest}" if dot and who in spec.agents else who + dot + rest for who, dot, rest in subjects
    )
