"""What learners of choices share: networks that see one step or whole episodes, legal choices, acting with a memory.

Every loss is written once, on batches [S, B, T, N, ...]: whole episodes where networks have a memory, single steps
(T = 1) where they have none. Steps that are padding and agents that are dead count nowhere.

Shapes: S seeds, B windows, T time, N agents, O observation, K choices, H memory; G networks with M rows each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from offmarl.data.episodes import EpisodeBatch
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import ObservingConfig, ObservingLearner
from offmarl.learners.legality import choices, mask_illegal
from offmarl.learners.networks import StackedMLP
from offmarl.learners.packing import PackedFrames, packed
from offmarl.learners.recurrent import StackedGRU
from offmarl.policy import OBSERVATION_LIMIT

AgentNetwork = StackedMLP | StackedGRU


@dataclass
class DiscreteConfig(ObservingConfig):
    """Settings of learners of choices."""

    # "gru": the agents' networks remember the episode so far; the last of `hidden` is the size of the memory (QMIX,
    # Rashid et al. 2018: 64, 64). "mlp": they see one step. null: "gru" where the task has a state beside what agents
    # observe, as battles do, else "mlp".
    trunk: Literal["gru", "mlp"] | None = None
    agent_id: bool = True  # PyMARL (Samvelyan et al. 2019)


class DiscreteLearner(ObservingLearner):
    """N agents that choose among K. Acts by the network `policy`, or by the values of `critic` where there is none."""

    action_type = "discrete"

    def __init__(
        self,
        spec: EnvSpec,
        config: DiscreteConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.choices = choices(spec, self.device)
        trunk = config.trunk or ("gru" if spec.state_dim else "mlp")
        self.network_kind: type[AgentNetwork] = StackedGRU if trunk == "gru" else StackedMLP
        self.memory_dim = config.hidden[-1] if trunk == "gru" else 0
        self.batch_unit = "episodes" if trunk == "gru" else "transitions"

    def sample(
        self, data: Transitions, batch_size: int, generators: Sequence[torch.Generator]
    ) -> EpisodeBatch:
        """Draw whole episodes or single steps, as `batch_unit` says."""
        if self.batch_unit == "episodes":
            return data.sample_episodes(batch_size, generators)
        return data.sample_steps(batch_size, generators)

    # ---- networks

    def agent_network(self, name: str, outputs: int | None = None) -> AgentNetwork:
        """Make the agents' networks with one output a choice, or `outputs`, kept in the checkpoint as `name`."""
        sizes = (self.input_dim, *self.settings.hidden, outputs or self.spec.action_dim)
        return self.stacked(self.network_kind, name, sizes)

    def inputs(self, batch: EpisodeBatch) -> PackedFrames:
        """What networks are shown of a batch, T + 1 steps."""
        inputs = self.scaled(batch.obs.transpose(1, 2).flatten(1, 2))  # [G, (T + 1) * M, O (+ N)]
        if batch.steps == 1:  # hardly anything could be left out
            return PackedFrames(inputs, [inputs.shape[1] // 2] * 2, inputs.shape[1] // 2)
        return packed(inputs, self.to_networks(batch.lifetimes))

    def scaled(self, obs: Tensor) -> Tensor:
        """Network input: [S, M, N, O] -> normalised, with agent ids, [G, M or M * N, O (+ N)]."""
        scaled = ((obs - self.obs_mean) * self.obs_scale).clamp_(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        if self._agent_id is not None:
            identity = self._agent_id.view(scaled.shape[2], -1)
            scaled = torch.cat([scaled, identity.expand(*scaled.shape[:3], -1)], dim=3)
        return self.to_networks(scaled)

    def to_networks(self, values: Tensor) -> Tensor:
        """Sort agents' values to the networks they belong to: [S, M, N, ...] -> [G, M or M * N, ...]."""
        return values.flatten(1, 2) if self.share else values.transpose(1, 2).flatten(0, 1)

    def from_networks(self, values: Tensor) -> Tensor:
        """Undo `to_networks`."""
        S, N = len(self.seeds), self.spec.n_agents
        return values.unflatten(1, (-1, N)) if self.share else values.unflatten(0, (S, N)).transpose(1, 2)

    def run(self, network: AgentNetwork, frames: PackedFrames) -> Tensor:
        """Run frames through their networks -> [S, B, T, N, outputs], zero after an episode's or an agent's end."""
        if isinstance(network, StackedGRU):
            outputs = network(frames.inputs, frames.counts)
        else:
            outputs = network(frames.inputs)
        values = self.from_networks(frames.padded(outputs))  # [S, T*B, N, outputs]
        return values.unflatten(1, (len(frames.counts), -1)).transpose(1, 2)

    def masked(self, values: Tensor, legal: Tensor | None) -> Tensor:
        """Put the lowest finite number where a choice [..., N, K] is illegal or not the agent's."""
        return mask_illegal(values, legal, self.choices)

    # ---- losses

    def average(self, values: Tensor, batch: EpisodeBatch) -> Tensor:
        """Average over what counts, for each network: [S, B, T, N] -> [S, 1 or N].

        The sum of the result is what to differentiate: networks do not see each other's gradient.
        """
        weight = batch.weight
        over = (1, 2, 3) if self.share else (1, 2)
        mean = (values * weight).sum(over) / weight.sum(over).clamp(min=1)
        return mean.view(len(self.seeds), -1)

    def team_average(self, values: Tensor, batch: EpisodeBatch) -> Tensor:
        """Average over the steps that were taken: [S, B, T] -> [S]."""
        return (values * batch.valid).sum((1, 2)) / batch.valid.sum((1, 2)).clamp(min=1)

    def draws(self, batch: EpisodeBatch, *shape: int) -> Tensor:
        """Draw numbers uniform in [0, 1) for every step of a batch: [S, B, T, *shape].

        How many steps are padding depends on which seeds are trained together, what a seed draws for its steps must
        not: so its generator gives the start of a stream of its own, in which step follows step.
        """
        _, B, T = batch.valid.shape
        drawn = []
        for generator in self.generators:
            start = torch.randint(2**62, (1,), generator=generator, device=self.device)
            own = torch.Generator(self.device).manual_seed(int(start))
            drawn.append(torch.rand(T, B, *shape, generator=own, device=self.device))
        return torch.stack(drawn).transpose(1, 2)

    # ---- acting

    @property
    def actor(self) -> AgentNetwork:
        """The network whose largest legal output is the choice."""
        network = self._stored.get("policy") or self._stored["critic"]
        assert isinstance(network, AgentNetwork)
        return network

    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Choose the best legal choices: [S, B, N, O], [S, B, N, K] -> [S, B, N]; with a memory, as on a first step."""
        S, B, N, _ = obs.shape
        return self.step(obs, legal, obs.new_zeros(S, B, N, self.memory_dim))[0]

    @torch.no_grad()
    def step(self, obs: Tensor, legal: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Act as `act` does after what `memory` [S, B, N, H] holds, and give the memory after this step."""
        inputs, actor = self.scaled(obs.to(self.obs_mean.dtype)), self.actor  # [G, M, O (+ N)]
        if isinstance(actor, StackedGRU):
            scores, after = actor.unroll(inputs, self.to_networks(memory), [inputs.shape[1]])
            memory = self.from_networks(after)
        else:
            scores = actor(inputs)
        return self.masked(self.from_networks(scores), legal).argmax(-1), memory
