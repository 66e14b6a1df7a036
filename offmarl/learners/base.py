"""What every learner shares: the interface, the normalisers, the agents' layout and the checkpoint.

Shapes: S seeds, B batch, N agents, O observation, A action dimensions or choices, G networks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from offmarl.data.table import Statistics, Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError
from offmarl.learners.networks import Network, StackedMLP
from offmarl.policy import OBSERVATION_LIMIT, policy_of
from offmarl.settings import Discount, Fraction, Hidden, Positive
from offmarl.streams import stream

Metrics = dict[str, Tensor]  # [S] each

Unit = Literal["transitions", "episodes", "units"]
# What one batch holds for each seed unless asked otherwise: OMAR (Pan et al. 2022); PyMARL (Samvelyan et al. 2019);
# single agents of a step: enough to learn a battle in a minute of one core.
USUAL_BATCH: dict[Unit, int] = {"transitions": 1_024, "episodes": 32, "units": 128}


@dataclass
class LearnerConfig:
    """Settings of every learner."""

    hidden: Hidden = (64, 64)  # OMAR (Pan et al. 2022), MPE tasks
    learning_rate: Positive = 3e-3  # fastest that stayed stable here for TD3 online; OMAR: 1e-2, TD3: 3e-4
    gradient_clip: Positive | None = 0.5  # OMAR's code; norm per network; null: none


@dataclass
class ObservingConfig(LearnerConfig):
    """Settings of learners of agents that observe."""

    # One network for all agents instead of one each; null: where all have the same role. OMAR's code never shares;
    # measured on its spread task (docs/sharing.md, one seed) BC reaches 84 without and 98 with, TD3+BC 79 and 98.
    share: bool | None = None
    agent_id: bool = (
        False  # shared networks see a one-hot agent id; always so if the agents have different roles
    )
    normalise_observations: bool = True  # Fujimoto & Gu (2021), section 4: mean 0, sd 1 of the data


@dataclass
class RewardConfig:
    """Settings of learners that look ahead.

    Rewards are divided by their standard deviation, so that one reward table differs from another by what it
    says and not by its unit. Centring subtracts r̄ / (1 - γ) from every value, which changes no decision as
    long as no episode terminates (a time limit is not a termination) and spares the critic from learning a
    constant many times larger than the differences that matter. Where an episode terminates, or an agent dies
    that is valued by its own future, it would change what the end is worth, so there it is not done.
    """

    gamma: Discount = 0.95  # OMAR, for horizons of 25
    tau: Fraction = 0.01  # share of the way that a target network moves at an update; OMAR, MPE tasks
    standardise_rewards: bool = True
    centre_rewards: bool = True  # where nothing in the data ends but by the time limit
    reward_sd: Positive = 1.0  # what the standard deviation of rewards becomes


@dataclass
class ValueConfig(RewardConfig, ObservingConfig):
    """Settings of learners with a value function."""


class Stored(Protocol):
    """Something with named tensors that belong in a checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """Give the tensors themselves, not copies: loading writes into them."""


Part = TypeVar("Part", bound=Stored)


class Learner(ABC):
    """Turns batches of data into policies, for S seeds at once."""

    action_type: ClassVar[Literal["continuous", "discrete"]]
    config_class: ClassVar[type[LearnerConfig]]
    batch_unit: Unit = "transitions"  # what a batch is counted in
    least_batch: ClassVar[int] = 1  # that an update can learn from
    nets_per_seed: int = 1

    def __init__(
        self, spec: EnvSpec, config: LearnerConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        assert spec.action_type == self.action_type, "make_learner checks this with a proper message"
        self.spec, self.seeds, self.device = spec, tuple(seeds), torch.device(device)
        self.settings = config
        self.generators = [stream(seed, "learner", device=self.device) for seed in self.seeds]
        self.updates = torch.zeros((), dtype=torch.int64)
        self._stored: dict[str, Stored] = {}

    # ---- what an algorithm defines

    @abstractmethod
    def sample(self, data: Any, batch_size: int, generators: Sequence[torch.Generator]) -> Any:
        """Draw what `update` takes: `batch_size` of `batch_unit` for each seed, from its own generator.

        Raises `UsageError` for a batch larger than the data.
        """

    @abstractmethod
    def update(self, batch: Any) -> Metrics:
        """One gradient step for all seeds and agents. Returns metrics [S] each (some only on some steps)."""

    def to_lower(self) -> dict[str, float]:
        """Name the settings that make training steadier when lowered, with their values."""
        discount = {"gamma": self.settings.gamma} if isinstance(self.settings, RewardConfig) else {}
        return {"learning_rate": self.settings.learning_rate} | discount

    # ---- the data as a whole

    def require(self, arrays: Collection[str]) -> None:  # noqa: B027 (hardly any algorithm reads what is optional)
        """Raise `DataError` where a dataset that holds these `arrays` lacks what the learner reads."""

    def see(self, data: Any) -> None:  # noqa: B027 (hardly any algorithm looks)
        """Look at all the data, after `observe` or `load_state_dict` and before the first update."""

    def observe(self, statistics: Any) -> None:  # noqa: B027 (not every learner normalises)
        """Take the normalisers from a dataset, once before training; without it there are none."""

    # ---- networks

    def stacked(
        self,
        kind: type[Network],
        name: str,
        sizes: Sequence[int],
        twins: int | None = None,
        last_bound: float | None = None,
        per_seed: int | None = None,
    ) -> Network:
        """Make networks of any kind and size as `network` makes perceptrons of the size in the settings."""
        seeds = (len(self.seeds), per_seed or self.nets_per_seed)
        made = kind.initialised(
            copies=seeds if twins is None else (twins, *seeds),
            seed_axis=0 if twins is None else 1,
            sizes=sizes,
            generators=[stream(seed, "network", name) for seed in self.seeds],
            device=self.device,
            last_bound=last_bound,
        )
        return self.keep(name, made)

    def keep(self, name: str, part: Part) -> Part:
        """Put `part` into the checkpoint under `name`."""
        self._stored[name] = part
        return part

    # ---- randomness: one generator a seed

    def uniform(self, *shape: int) -> Tensor:
        """[S, *shape] in [-1, 1]."""
        return self._draws(torch.rand, shape).mul_(2).sub_(1)

    def normal(self, *shape: int) -> Tensor:
        """[S, *shape] standard normal."""
        return self._draws(torch.randn, shape)

    def _draws(self, law: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        drawn = [self._draw(law, shape, generator) for generator in self.generators]
        return drawn[0].unsqueeze(0) if len(drawn) == 1 else torch.stack(drawn)

    def _draw(self, law: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return law(*shape, generator=generator, device=self.device)

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds but the generators; the tensors themselves."""
        parts = {
            f"{name}.{key}": tensor
            for name, part in self._stored.items()
            for key, tensor in part.tensors().items()
        }
        return {"updates": self.updates} | parts

    def state_dict(self) -> dict[str, Tensor]:
        """Copy everything needed to act and to go on training with identical numbers."""
        state = {name: tensor.detach().clone().contiguous() for name, tensor in self.tensors().items()}
        state["generators"] = torch.stack([generator.get_state() for generator in self.generators])
        return state

    def check_state(self, state: dict[str, Tensor], training: bool = True) -> None:
        """Raise `DataError` naming the tensor of `state` that is missing or does not fit."""
        for name, tensor in self.tensors().items():
            if name not in state:
                raise DataError(f"the checkpoint has no tensor '{name}': was it written by another learner?")
            if state[name].shape != tensor.shape:
                expected, found = list(tensor.shape), list(state[name].shape)
                raise DataError(
                    f"tensor '{name}' has shape {found} in the checkpoint, but the settings give {expected}"
                )
            if state[name].dtype != tensor.dtype:
                raise DataError(
                    f"tensor '{name}' holds {state[name].dtype} in the checkpoint, not {tensor.dtype}"
                )
            if not bool(state[name].isfinite().all()):
                raise DataError(
                    f"tensor '{name}' of the checkpoint is damaged: not all of it are finite numbers"
                )
        if not training:
            return
        generators = state.get("generators")
        if generators is None or len(generators) != len(self.generators):
            raise DataError(f"the checkpoint does not hold generators for {len(self.generators)} seeds")
        if generators.dtype != torch.uint8:
            raise DataError(f"the checkpoint is damaged: 'generators' holds {generators.dtype}, not bytes")
        if len(generators[0]) != len(self.generators[0].get_state()):
            raise DataError(
                f"the checkpoint was not written on {self.device.type}, and generators cannot change device: "
                "continue with the --device that the run was started on"
            )

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], training: bool = True) -> None:
        """Restore `state_dict()`. With `training` false the generators are left alone (they fit one device).

        Raises `DataError` as `check_state` does; nothing is changed then.
        """
        self.check_state(state, training)
        own = self.tensors()
        for name, tensor in own.items():
            tensor.copy_(state[name])
        if training:
            for generator, saved in zip(self.generators, state["generators"].cpu(), strict=True):
                generator.set_state(saved.clone())  # PyTorch crashes on a view that starts elsewhere


class ObservingLearner(Learner):
    """Turns what N agents observe into policies.

    Inside, tensors are agent-major, [S, N, B, ...]: a view of that is [S*N, B, ...] for one network per agent
    and seed, or [S, N*B, ...] for one network per seed.
    """

    settings: ObservingConfig
    memory_dim: int = 0  # what an agent carries from one step of acting to the next

    def __init__(
        self, spec: EnvSpec, config: ObservingConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(spec, config, seeds, device)
        N, obs_dim = spec.n_agents, spec.obs_dim
        self.share = len(spec.groups) == 1 if config.share is None else config.share
        self.nets_per_seed = 1 if self.share else N
        self.obs_mean = torch.zeros(N, obs_dim, device=self.device)
        self.obs_scale = torch.ones(N, obs_dim, device=self.device)
        with_id = self.share and (config.agent_id or len(spec.groups) > 1)
        self._agent_id = torch.eye(N, device=self.device).view(1, N, 1, N) if with_id else None
        self.input_dim = obs_dim + (N if with_id else 0)

    def sample(self, data: Transitions, batch_size: int, generators: Sequence[torch.Generator]) -> Any:
        """Draw transitions or whole episodes, as `batch_unit` says. Raises `UsageError` for too large a batch."""
        return data.sample(batch_size, generators)

    # ---- acting

    @abstractmethod
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Greedy actions: [S, B, N, O] -> [S, B, N, A] in [-1, 1], or [S, B, N] int64 among `legal`.

        A learner with a memory takes each frame for the first of an episode; `step` is for going on.
        """

    def step(self, obs: Tensor, legal: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Act as `act` does, with what was remembered [S, B, N, H], and give what to remember next.

        Zeros are the memory of nothing; H is `memory_dim`.
        """
        return self.act(obs, legal), memory

    # ---- the data as a whole

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers from a dataset, once before training; without it there are none."""
        if self.settings.normalise_observations:
            mean, std = self._pooled(statistics.obs_mean, statistics.obs_std)
            self.obs_mean.copy_(mean)
            self.obs_scale.copy_(torch.where(std > 1e-6, 1 / std.clamp(min=1e-6), 1.0))

    def _pooled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Moments [N, ...] per agent, or those of all agents' data together where they share a network."""
        mean, std = mean.to(self.device, torch.float32), std.to(self.device, torch.float32)
        if not self.share:
            return mean, std
        pooled = mean.mean(0, keepdim=True)
        variance = (std**2 + (mean - pooled) ** 2).mean(0, keepdim=True)
        return pooled.expand_as(mean), variance.sqrt().expand_as(std)

    def prepare(self, obs: Tensor) -> Tensor:
        """Network input: [S, B, N, O] -> normalised [S, N, B, O (+ N)]."""
        scaled = (obs.to(self.obs_mean.dtype) - self.obs_mean).mul_(self.obs_scale)
        scaled = scaled.clamp_(-OBSERVATION_LIMIT, OBSERVATION_LIMIT).transpose(1, 2)
        if self._agent_id is None:
            return scaled.contiguous()
        S, N, B, _ = scaled.shape
        return torch.cat([scaled, self._agent_id.expand(S, N, B, N)], dim=-1)

    # ---- the policy alone

    @torch.no_grad()
    def exported(self, index: int) -> nn.Module:
        """Give the policy of seed `index` as a module, which acts as `act` and `step` do.

        `obs [B, N, O]` and, of choices, `legal [B, N, A]` -> actions, or where there is a memory `[B, N, H]` after
        those, actions and the next memory. The network `policy` gives actions, or where there is none the values
        `critic` choose among.
        """
        network = self._stored.get("policy") or self._stored["critic"]
        layers = {name: tensor[index] for name, tensor in network.tensors().items()}  # [N or 1, ...]
        N, obs_dim = self.spec.n_agents, self.spec.obs_dim
        layers = {name: tensor.expand(N, *tensor.shape[1:]).clone() for name, tensor in layers.items()}
        if self._agent_id is not None:  # an agent's id is a constant: part of its bias
            name = next(iter(layers)).removesuffix(".weight")
            first = layers[f"{name}.weight"]
            layers[f"{name}.bias"] += torch.stack([first[agent, obs_dim + agent] for agent in range(N)])
            layers[f"{name}.weight"] = first[:, :obs_dim].clone()
        widths = torch.tensor([len(names) for names in self.spec.action_names], device=self.device)
        used = torch.arange(self.spec.action_dim, device=self.device) < widths.unsqueeze(1)
        normaliser = {"obs_mean": self.obs_mean.clone(), "obs_scale": self.obs_scale.clone(), "used": used}
        return policy_of(normaliser | layers, self.spec.discrete)

    # ---- networks

    def network(
        self,
        name: str,
        inputs: int,
        outputs: int,
        twins: int | None = None,
        last_bound: float | None = None,
        per_seed: int | None = None,
    ) -> StackedMLP:
        """Make perceptrons [twins?, S, N or 1], initialised per seed, kept in the checkpoint as `name`.

        `per_seed` is their number a seed, where it is not that of the agents' networks.
        """
        sizes = (inputs, *self.settings.hidden, outputs)
        return self.stacked(StackedMLP, name, sizes, twins, last_bound, per_seed)

    def rows(self, values: Tensor) -> Tensor:
        """Sort agents' values to the networks they belong to: [S, N, B, ...] -> [G, M, ...]."""
        return values.reshape(len(self.seeds) * self.nets_per_seed, -1, *values.shape[3:])

    def apply(self, network: StackedMLP, inputs: Tensor) -> Tensor:
        """Run agents through their networks: [S, N, B, inputs] -> [S, N, B, outputs]."""
        S, N, B, _ = inputs.shape
        return network(self.rows(inputs)).view(S, N, B, -1)

    def total(self, loss: Tensor) -> Tensor:
        """Reduce losses [..., S, N] to the scalar to differentiate.

        The mean over agents that share a network, then the sum over networks: they do not see each other's
        gradient.
        """
        return (loss.mean(-1) if self.share else loss).sum()

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds but the generators; the tensors themselves."""
        own = {"normaliser.obs_mean": self.obs_mean, "normaliser.obs_scale": self.obs_scale}
        return own | super().tensors()
