"""What every learner shares: the interface, the normalisers, the agents' layout and the checkpoint.

Shapes: S seeds, B batch, N agents, O observation, A action dimensions or choices, G networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from offmarl.data.table import Batch, Statistics
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError
from offmarl.learners.networks import StackedMLP
from offmarl.streams import stream

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Discount = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]

Metrics = dict[str, Tensor]  # [S] each

# Beyond ten standard deviations an observation says no more than "far out"; unclipped, one dimension that
# hardly varies in the data drowns the others when it does vary.
OBSERVATION_LIMIT = 10.0


@dataclass
class LearnerConfig:
    """Settings of every learner."""

    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (64, 64)  # OMAR (Pan et al. 2022), MPE tasks
    learning_rate: Positive = 3e-3  # fastest that stayed stable here for TD3 online; OMAR: 1e-2, TD3: 3e-4
    gradient_clip: Positive | None = 0.5  # OMAR's code; norm per network; null: none
    share: bool = False  # one network for all agents instead of one each
    agent_id: bool = (
        False  # shared networks see a one-hot agent id; always so if the agents have different roles
    )
    normalise_observations: bool = True  # Fujimoto & Gu (2021), section 4: mean 0, sd 1 of the data


@dataclass
class ValueConfig(LearnerConfig):
    """Settings of learners with a value function.

    Rewards are divided by their standard deviation, so that one reward table differs from another by what it
    says and not by its unit. Centring subtracts r̄ / (1 - γ) from every value, which changes no decision as
    long as no episode terminates (a time limit is not a termination) and spares the critic from learning a
    constant many times larger than the differences that matter. Where an episode terminates it would change
    what the end is worth, so there it is not done.
    """

    gamma: Discount = 0.95  # OMAR, for horizons of 25
    tau: Fraction = 0.01  # share of the way that a target network moves at an update; OMAR, MPE tasks
    standardise_rewards: bool = True
    centre_rewards: bool = True  # where no episode of the data terminates
    reward_sd: Positive = 1.0  # what the standard deviation of rewards becomes


class Stored(Protocol):
    """Something with named tensors that belong in a checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors themselves, not copies: loading writes into them."""


Part = TypeVar("Part", bound=Stored)


class Learner(ABC):
    """Turns batches of transitions into policies, for S seeds and N agents at once.

    Inside, tensors are agent-major, [S, N, B, ...]: a view of that is [S*N, B, ...] for one network per agent
    and seed, or [S, N*B, ...] for one network per seed.
    """

    action_type: ClassVar[Literal["continuous", "discrete"]]
    config_class: ClassVar[type[LearnerConfig]]

    def __init__(
        self, spec: EnvSpec, config: LearnerConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        assert spec.action_type == self.action_type, "make_learner checks this with a proper message"
        self.spec, self.seeds, self.device = spec, tuple(seeds), torch.device(device)
        self.settings = config
        N, obs_dim = spec.n_agents, spec.obs_dim
        self.nets_per_seed = 1 if config.share else N
        self.obs_mean = torch.zeros(N, obs_dim, device=self.device)
        self.obs_scale = torch.ones(N, obs_dim, device=self.device)
        self.generators = [stream(seed, "learner", device=self.device) for seed in self.seeds]
        with_id = config.share and (config.agent_id or len(spec.groups) > 1)
        self._agent_id = torch.eye(N, device=self.device).view(1, N, 1, N) if with_id else None
        self.input_dim = obs_dim + (N if with_id else 0)
        self.updates = torch.zeros((), dtype=torch.int64)
        self._stored: dict[str, Stored] = {}

    # ---- what an algorithm defines

    @abstractmethod
    def update(self, batch: Batch) -> Metrics:
        """One gradient step for all seeds and agents. Returns metrics [S] each (some only on some steps)."""

    @abstractmethod
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Greedy actions: [S, B, N, O] -> [S, B, N, A] in [-1, 1], or [S, B, N] int64 among `legal`."""

    # ---- normalisers

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers from a dataset, once before training; without it there are none."""
        if self.settings.normalise_observations:
            mean, std = self._pooled(statistics.obs_mean, statistics.obs_std)
            self.obs_mean.copy_(mean)
            self.obs_scale.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0))

    def _pooled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Moments [N, ...] per agent, or those of all agents' data together where they share a network."""
        mean, std = mean.to(self.device, torch.float32), std.to(self.device, torch.float32)
        if not self.settings.share:
            return mean, std
        pooled = mean.mean(0, keepdim=True)
        variance = (std**2 + (mean - pooled) ** 2).mean(0, keepdim=True)
        return pooled.expand_as(mean), variance.sqrt().expand_as(std)

    def prepare(self, obs: Tensor) -> Tensor:
        """Network input: [S, B, N, O] -> normalised [S, N, B, O (+ N)]."""
        scaled = ((obs.to(self.obs_mean.dtype) - self.obs_mean) * self.obs_scale).transpose(1, 2)
        scaled = scaled.clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        if self._agent_id is None:
            return scaled.contiguous()
        S, N, B, _ = scaled.shape
        return torch.cat([scaled, self._agent_id.expand(S, N, B, N)], dim=-1)

    # ---- networks

    def network(
        self, name: str, inputs: int, outputs: int, twins: int | None = None, last_bound: float | None = None
    ) -> StackedMLP:
        """Make networks [twins?, S, N or 1], initialised per seed, kept in the checkpoint as `name`."""
        seeds = (len(self.seeds), self.nets_per_seed)
        made = StackedMLP.initialised(
            copies=seeds if twins is None else (twins, *seeds),
            seed_axis=0 if twins is None else 1,
            sizes=(inputs, *self.settings.hidden, outputs),
            generators=[stream(seed, "network", name) for seed in self.seeds],
            device=self.device,
            last_bound=last_bound,
        )
        return self.keep(name, made)

    def keep(self, name: str, part: Part) -> Part:
        """Put `part` into the checkpoint under `name`."""
        self._stored[name] = part
        return part

    def apply(self, network: StackedMLP, inputs: Tensor) -> Tensor:
        """Run agents through their networks: [S, N, B, inputs] -> [S, N, B, outputs]."""
        S, N, B, width = inputs.shape
        rows = inputs.reshape(S * self.nets_per_seed, -1, width)
        return network(rows).view(S, N, B, -1)

    def total(self, loss: Tensor) -> Tensor:
        """Reduce losses [..., S, N] to the scalar to differentiate.

        The mean over agents that share a network, then the sum over networks: they do not see each other's
        gradient.
        """
        return (loss.mean(-1) if self.settings.share else loss).sum()

    # ---- randomness: one generator a seed

    def uniform(self, *shape: int) -> Tensor:
        """[S, *shape] in [-1, 1]."""
        return (
            torch.stack([self._draw(torch.rand, shape, generator) for generator in self.generators]) * 2 - 1
        )

    def normal(self, *shape: int) -> Tensor:
        """[S, *shape] standard normal."""
        return torch.stack([self._draw(torch.randn, shape, generator) for generator in self.generators])

    def _draw(self, law: object, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return law(*shape, generator=generator, device=self.device)  # type: ignore[operator]

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds but the generators; the tensors themselves."""
        own = {
            "normaliser.obs_mean": self.obs_mean,
            "normaliser.obs_scale": self.obs_scale,
            "updates": self.updates,
        }
        parts = {
            f"{name}.{key}": tensor
            for name, part in self._stored.items()
            for key, tensor in part.tensors().items()
        }
        return own | parts

    def state_dict(self) -> dict[str, Tensor]:
        """Copy everything needed to act and to go on training with identical numbers."""
        state = {name: tensor.detach().clone().contiguous() for name, tensor in self.tensors().items()}
        state["generators"] = torch.stack([generator.get_state() for generator in self.generators])
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], training: bool = True) -> None:
        """Restore `state_dict()`. With `training` false the generators are left alone (they fit one device).

        Raises `DataError` naming the tensor that is missing or has another shape; nothing is changed then.
        """
        own = self.tensors()
        for name, tensor in own.items():
            if name not in state:
                raise DataError(f"the checkpoint has no tensor '{name}': was it written by another learner?")
            if state[name].shape != tensor.shape:
                expected, found = list(tensor.shape), list(state[name].shape)
                raise DataError(
                    f"tensor '{name}' has shape {found} in the checkpoint, but the settings give {expected}"
                )
        if training:
            generators = state.get("generators")
            if generators is None or len(generators) != len(self.generators):
                raise DataError(f"the checkpoint does not hold generators for {len(self.generators)} seeds")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        if training:
            for generator, saved in zip(self.generators, state["generators"].cpu(), strict=True):
                generator.set_state(saved.clone())  # PyTorch crashes on a view that starts elsewhere
