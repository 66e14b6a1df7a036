"""Any Q-learning or imitation algorithm of d3rlpy, for every agent: `--learner d3rlpy:iql`.

d3rlpy (Seno & Imai 2022, JMLR 23) holds single-agent offline algorithms. Here each agent has one, or all agents share
one, fed with the same batches, normalisers and rewards as this package's own learners. Its networks are objects that
cannot be stacked, so seeds and agents are a plain loop: expect S * N times the cost of one.

What differs from the own learners:
- d3rlpy knows no legal actions. Its targets look at all choices; at acting, a choice that is not legal is replaced by
  the likeliest legal one where the algorithm has a categorical policy, else by the legal one of highest value.
- Its batches hold the rows of living agents alone, so that their size varies where agents die.
- It draws from PyTorch's global generators. They are seeded for every update and seed from a named stream, and put
  back afterwards, so that a resumed run goes on identically and nothing else is shifted.
- Policies that draw candidates (BCQ) draw the same ones in every call: equal frames, equal actions.

Shapes: S seeds, B batch, N agents, G networks a seed (N, or 1 where shared), O observation, A action dimensions or
choices, K choices of one network, I network inputs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from offmarl.data.table import Batch, Statistics, Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import UsageError
from offmarl.learners.base import Metrics, ObservingLearner, ValueConfig
from offmarl.learners.d3rlpy_settings import (
    PREFIX,
    D3rlpyConfig,
    d3rlpy_algorithm,
    settings_class,
    told_to_d3rlpy,
)
from offmarl.learners.legality import choices
from offmarl.learners.rewards import Rewards
from offmarl.settings import departures
from offmarl.streams import stream_seed

Q_EVERY = 50  # updates between two looks at the values of the data's actions, for the metric q_mean


@cache
def d3rlpy_learner(name: str, action_type: str) -> type["D3rlpyLearner"]:
    """Make the learner class of `d3rlpy:<algorithm>` for "continuous" or "discrete" actions.

    Raises `UsageError` like `d3rlpy_algorithm`.
    """
    d3rlpy_config = d3rlpy_algorithm(name, action_type)
    algorithm = name.removeprefix(PREFIX)
    config_class = settings_class(algorithm, action_type, d3rlpy_config)
    return type(
        config_class.__name__.removesuffix("Config") + "Learner",
        (D3rlpyLearner,),
        {
            "action_type": action_type,
            "config_class": config_class,
            "d3rlpy_config": d3rlpy_config,
            "algorithm": algorithm,
        },
    )


class D3rlpyLearner(ObservingLearner):
    """One algorithm of d3rlpy for each seed and each network; subclasses are made by `d3rlpy_learner`."""

    algorithm: str  # d3rlpy's name without discrete_
    d3rlpy_config: type[Any]
    config: D3rlpyConfig

    def __init__(
        self,
        spec: EnvSpec,
        config: D3rlpyConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.config = config
        chosen = told_to_d3rlpy(config, self.d3rlpy_config)
        moments = ValueConfig(
            gamma=chosen.gamma,
            standardise_rewards=config.standardise_rewards,
            centre_rewards=config.centre_rewards,
            reward_sd=config.reward_sd,
        )
        self.rewards = self.keep("normaliser", Rewards(moments, spec.n_agents, self.device))
        widths = [len(names) for names in spec.action_names]
        self.widths = [spec.action_dim] if self.share else widths  # of each network
        self.networks = [
            [self._network(chosen, seed, network) for network in range(self.nets_per_seed)]
            for seed in range(len(self.seeds))
        ]
        self.policies = [D3rlpyPolicy(self, implementations) for implementations in self.networks]

    def _network(self, chosen: Any, seed: int, network: int) -> Any:
        """Build what d3rlpy calls the implementation, and keep its tensors under network.seed.network."""
        made = chosen.create(device="cuda:0" if str(self.device) == "cuda" else str(self.device))
        with self.drawing(seed, "initial", network):
            try:
                made.create_impl((self.input_dim,), self.widths[network])
            except (ValueError, TypeError, AssertionError, KeyError) as error:
                raise self.refusal(error) from error
        self.keep(f"network.{seed}.{network}", _Tensors(made.impl.modules))
        return made.impl

    def refusal(self, error: Exception) -> UsageError:
        """Say what d3rlpy said, in one line; its assertions say nothing."""
        text = str(error).partition("\n")[0] or f"{type(error).__name__} without a reason"
        return UsageError(
            f"d3rlpy refuses these settings of {self.algorithm}, {departures(self.config)}: {text}"
        )

    @contextmanager
    def drawing(self, seed: int, *names: str | int) -> Iterator[None]:
        """Let d3rlpy draw from a stream of its own, and put PyTorch's global generators back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(stream_seed(self.seeds[seed], "d3rlpy", *names))
            yield

    def observe(self, statistics: Statistics) -> None:
        """Take the normalisers of observations and rewards from a dataset."""
        super().observe(statistics)
        self.rewards.observe(
            *self._pooled(statistics.reward_mean, statistics.reward_std), statistics.agents_end
        )

    def see(self, transitions: Transitions) -> None:
        """PRDC (Ran et al. 2023) pulls the policy to the nearest transition of the whole dataset: index them."""
        if not hasattr(self.networks[0][0], "_nbsr"):
            return
        from sklearn.neighbors import NearestNeighbors

        rows = transitions.transition_rows
        obs = self.prepare(transitions.column("obs")[rows].unsqueeze(0).to(self.device))  # [1, N, M, I]
        action = transitions.column("action")[rows].unsqueeze(0).transpose(1, 2).to(self.device)
        alive = torch.ones(obs.shape[1:3], dtype=torch.bool, device=self.device)  # [N, M]
        if "alive" in transitions.columns:
            alive = transitions.column("alive")[rows].T.bool().to(self.device)
        beta = cast(Any, self.config).beta
        for network, width in enumerate(self.widths):
            points = torch.cat(
                [beta * self.own(obs[0], network), self.own(action[0], network)[:, :width]], dim=1
            )
            points = points[_living(self.own(alive, network))]
            index = NearestNeighbors(n_neighbors=1).fit(points.cpu().numpy())
            for implementations in self.networks:
                # d3rlpy has one index for the whole process; agents need their own.
                implementations[network]._nbsr = index

    def own(self, values: Tensor, network: int) -> Tensor:
        """Give a network the values of its agents: [N, B, ...] -> [B, ...], or [N*B, ...] where all share it."""
        return values.flatten(0, 1) if self.share else values[network]

    def update(self, batch: Batch) -> Metrics:
        """One update of d3rlpy's for every seed and network. Time limits are no end, as with the own learners."""
        from d3rlpy.torch_utility import TorchMiniBatch

        step = int(self.updates)
        obs, next_obs = self.prepare(batch.obs), self.prepare(batch.next_obs)  # [S, N, B, I]
        action, next_action = batch.action.transpose(1, 2), batch.next_action.transpose(1, 2)
        if self.spec.discrete:
            action, next_action = action.unsqueeze(-1).float(), next_action.unsqueeze(-1).float()
        reward = self.rewards.normalised(batch).unsqueeze(-1)  # [S, N, B, 1]
        ended = (1 - batch.lives_on).transpose(1, 2).unsqueeze(-1)  # [S, N, B, 1]
        alive = torch.ones_like(batch.reward, dtype=torch.bool) if batch.alive is None else batch.alive
        alive = alive.transpose(1, 2)  # [S, N, B]
        logged: dict[str, list[list[float]]] = {}
        for seed, implementations in enumerate(self.networks):
            of_seed: dict[str, list[float]] = {}
            with self.drawing(seed, "update", step):
                for network, implementation in enumerate(implementations):
                    width = 1 if self.spec.discrete else self.widths[network]
                    rows = _living(self.own(alive[seed], network))
                    rewards = self.own(reward[seed], network)[rows]
                    mini = TorchMiniBatch(
                        observations=self.own(obs[seed], network)[rows],
                        actions=self.own(action[seed], network)[rows, :width],
                        rewards=rewards,
                        next_observations=self.own(next_obs[seed], network)[rows],
                        next_actions=self.own(next_action[seed], network)[rows, :width],
                        returns_to_go=torch.zeros_like(rewards),
                        terminals=self.own(ended[seed], network)[rows],
                        intervals=torch.ones_like(rewards),
                        device=implementation.device,
                    )
                    try:
                        metrics = implementation.update(mini, step)
                    except (ValueError, AssertionError) as error:  # a setting, or NaN in a distribution
                        _check_finite(implementation)
                        if "found invalid values" in str(error):
                            raise FloatingPointError("a distribution's parameters are not finite") from error
                        raise self.refusal(error) from error
                    if step % Q_EVERY == 0:
                        metrics |= _q_mean(implementation, mini, self.spec.discrete)
                    for name, value in metrics.items():
                        of_seed.setdefault(name, []).append(float(value))
            for name, values in of_seed.items():
                logged.setdefault(name, []).append(values)
        self.updates += 1
        return {name: torch.tensor(values).mean(1) for name, values in logged.items()}

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Act greedily: [S, B, N, O], [S, B, N, A] -> [S, B, N, A], or [S, B, N] int64 among `legal`."""
        actions = []
        for seed, policy in enumerate(self.policies):
            with self.drawing(seed, "act"):
                actions.append(policy(obs[seed], None if legal is None else legal[seed]))
        return torch.stack(actions)

    def exported(self, index: int) -> nn.Module:
        """Give the policy of one seed as a module: `obs [B, N, O]` and, of choices, `legal` -> actions, as `act`."""
        return self.policies[index]

    def to_lower(self) -> dict[str, float]:
        """Name the learning rates and the discount."""
        names = [known.name for known in fields(self.config) if known.name.endswith("learning_rate")]
        if self.config.learning_rate is not None:
            names = ["learning_rate"]
        values = {name: getattr(self.config, name) for name in [*names, "gamma"]}
        return {name: value for name, value in values.items() if value is not None}


class D3rlpyPolicy(nn.Module):
    """The greedy policies of one seed's agents."""

    def __init__(self, learner: D3rlpyLearner, implementations: list[Any]) -> None:
        super().__init__()
        spec = learner.spec
        self.discrete, self.share, self.width = spec.discrete, learner.share, spec.action_dim
        self.widths, self.implementations = learner.widths, implementations
        self.prepare = learner.prepare
        widths = torch.tensor([len(names) for names in spec.action_names])
        used = torch.arange(spec.action_dim) < widths.unsqueeze(1)  # [N, A]
        self.used: Tensor
        self.register_buffer("used", used.to(learner.device))
        self.narrower = choices(spec, learner.device) is not None
        # Registered, so that tracing finds parameters rather than constants.
        self.parts = nn.ModuleList(
            module for made in implementations for module in made.modules.get_torch_modules().values()
        )

    def forward(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """[B, N, O], [B, N, A] bool -> [B, N, A] in [-1, 1], or [B, N] int64."""
        inputs = self.prepare(obs.unsqueeze(0)).squeeze(0)  # [N, B, I]
        if self.discrete:
            agents = [self.choose(agent, inputs[agent], legal) for agent in range(len(self.used))]
            return torch.stack(agents, dim=1)
        actions = []
        for agent in range(len(self.used)):
            network = 0 if self.share else agent
            action = self.implementations[network].predict_best_action(inputs[agent])
            actions.append(F.pad(action, (0, self.width - self.widths[network])))
        return (torch.stack(actions, dim=1) * self.used).clamp(-1, 1)

    def choose(self, agent: int, inputs: Tensor, legal: Tensor | None) -> Tensor:
        """Take the algorithm's choice, or where it is not legal the best of those that are: [B, I] -> [B]."""
        network = 0 if self.share else agent
        implementation, width = self.implementations[network], self.widths[network]
        best: Tensor = implementation.predict_best_action(inputs)
        if legal is None and not self.narrower:
            return best
        liking = _preferences(implementation, inputs, width)
        allowed = self.used[agent, :width].expand_as(
            liking
        )  # a number of frames would be traced as a constant
        if legal is not None:
            allowed = allowed & legal[:, agent, :width]
        liking = liking.masked_fill(~allowed, torch.finfo(liking.dtype).min)
        fine = allowed.gather(1, best.unsqueeze(1)).squeeze(1)
        return torch.where(fine, best, liking.argmax(1))


def _preferences(implementation: Any, inputs: Tensor, width: int) -> Tensor:
    """How much an algorithm likes each choice: logits of its policy, or values. [B, I] -> [B, K]."""
    from d3rlpy.models.torch import CategoricalPolicy

    for name in ("policy", "imitator"):
        policy = getattr(implementation.modules, name, None)
        if isinstance(policy, CategoricalPolicy):
            logits: Tensor = policy(inputs).logits
            return logits
    each = [torch.full_like(inputs[:, 0], choice, dtype=torch.int64) for choice in range(width)]
    return torch.stack([implementation.predict_value(inputs, choice) for choice in each], dim=1)


def _living(alive: Tensor) -> Tensor:
    """Rows in which an agent lives, of [B] bool; all of them where it lives in none, since d3rlpy wants some."""
    rows = alive.nonzero().squeeze(1)
    return rows if len(rows) else torch.arange(len(alive), device=alive.device)


def _check_finite(implementation: Any) -> None:
    """Raise `FloatingPointError` if a parameter is not a finite number."""
    for part, module in implementation.modules.get_torch_modules().items():
        for name, parameter in module.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise FloatingPointError(f"{part}.{name} is not finite")


@torch.no_grad()
def _q_mean(implementation: Any, mini: Any, discrete: bool) -> dict[str, float]:
    """Mean value of the data's actions; nothing for algorithms without values."""
    try:
        action = mini.actions.long() if discrete else mini.actions
        return {"q_mean": float(implementation.predict_value(mini.observations, action).mean())}
    except NotImplementedError:  # how d3rlpy says that imitation has none
        return {}


class _Tensors:
    """The tensors of one implementation: networks, and the moments of their optimisers."""

    def __init__(self, modules: Any) -> None:
        from d3rlpy.optimizers import OptimizerWrapper

        parts = {part.name: getattr(modules, part.name) for part in fields(modules)}
        self.networks: dict[str, nn.Module] = modules.get_torch_modules()
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: part.optim for name, part in parts.items() if isinstance(part, OptimizerWrapper)
        }
        for optimiser in self.optimisers.values():
            _make_moments(optimiser)

    def tensors(self) -> dict[str, Tensor]:
        """Everything a checkpoint holds; the tensors themselves."""
        found = {
            f"{name}.{key}": tensor
            for name, network in self.networks.items()
            for key, tensor in network.state_dict().items()
        }
        for name, optimiser in self.optimisers.items():
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            for index, parameter in enumerate(parameters):
                for key, value in optimiser.state[parameter].items():
                    if isinstance(value, Tensor):
                        found[f"{name}.{index}.{key}"] = value
        return found


def _make_moments(optimiser: torch.optim.Optimizer) -> None:
    """Make an optimiser's moments now, as zeros, so that a checkpoint always holds the same tensors."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
            parameter.grad = None
            for moment in optimiser.state[parameter].values():
                if isinstance(moment, Tensor):
                    moment.zero_()
