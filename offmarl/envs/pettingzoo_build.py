"""Options -> a PettingZoo environment: what is asked of the workers, the spec, who is in the background.

Shapes: E copies, P background agents, O observation, K choices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from offmarl.envs.base import EnvSpec
from offmarl.envs.mpe2 import MPE2_TASKS, action_names, encode_force
from offmarl.envs.opponents.policy import NetworkPolicy, Opponent, make_opponent, refuse_opponent
from offmarl.envs.options import read_options
from offmarl.envs.particle.task import Actions
from offmarl.envs.pettingzoo import BackgroundPolicy, PettingZooEnvironment, Workers
from offmarl.envs.pettingzoo_worker import Description, Source
from offmarl.errors import UsageError, unknown_name


def make_pettingzoo(
    env_id: str,
    num_envs: int,
    module: str | None,
    options: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    opponent: Opponent | None = None,
    processes: int | None = None,
) -> PettingZooEnvironment:
    """The mpe2 task `env_id`, or `module`'s `parallel_env(**options)` under that id; see `registry.make`.

    Three options are the adapter's own for every module: `background` ({prefix of agents' names: `random` or
    a .safetensors file}), `horizon` (truncate there) and `state` (use the environment's global state).
    """
    build = _Mpe2Build(env_id, options) if module is None else _ModuleBuild(env_id, module, options)
    return start(build, num_envs, device, dtype, opponent, processes)


class Build(Protocol):
    """How an environment in worker processes is made, described and given its background."""

    source: Source

    def spec(self, description: Description) -> EnvSpec:
        """The spec of what a worker described."""

    def background(
        self,
        description: Description,
        spec: EnvSpec,
        generator: torch.Generator,
        dtype: torch.dtype,
        opponent: Opponent | None,
    ) -> dict[str, BackgroundPolicy]:
        """The policies of the agents that do not learn."""


def start(
    build: Build,
    num_envs: int,
    device: torch.device | str,
    dtype: torch.dtype,
    opponent: Opponent | None,
    processes: int | None,
) -> PettingZooEnvironment:
    """Start the workers of `build`, and the environment in front of them."""
    workers = Workers(build.source, num_envs, processes)
    try:
        description: Description = workers.ask("describe")[0]
        spec = build.spec(description)
        generator = torch.Generator(device)
        background = build.background(description, spec, generator, dtype, opponent)
        return PettingZooEnvironment(spec, description, workers, num_envs, background, generator, dtype)
    except BaseException:
        workers.close()
        raise


class _Mpe2Build:
    """How an mpe2 task is built and described."""

    def __init__(self, env_id: str, options: Mapping[str, Any]):
        if env_id not in MPE2_TASKS:
            raise unknown_name("environment of the backend pettingzoo", env_id, MPE2_TASKS)
        self.id = env_id
        self._task = MPE2_TASKS[env_id]
        self._options = read_options(env_id, self._task.options_class, options)
        arguments = {
            "max_cycles": self._options.horizon,
            "continuous_actions": self._options.actions != "discrete",
            **self._task.arguments(self._options),
        }
        forces = self._options.actions == "force"
        self.source = Source(self._task.module, arguments, forces=forces, with_state=self._options.state)

    def spec(self, description: Description) -> EnvSpec:
        """Prey, where there are any, are in the background."""
        prefix = self._task.prey_prefix if getattr(self._options, "background", None) == "prey" else None
        background = [agent for agent in description.agents if prefix and agent.startswith(prefix)]
        names = dict(zip(description.agents, self._task.obs_names(self._options), strict=True))
        return describe_environment(
            self.id,
            "pettingzoo",
            asdict(self._options),
            description,
            background,
            obs_names=names,
            action_names=dict(
                zip(description.agents, action_names(self._options.actions, description.agents), strict=True)
            ),
            shared_reward=self._task.shared_reward,
        )

    def background(
        self,
        description: Description,
        spec: EnvSpec,
        generator: torch.Generator,
        dtype: torch.dtype,
        opponent: Opponent | None,
    ) -> dict[str, BackgroundPolicy]:
        """The policy of each prey, whose forces are put into the task's action convention."""
        if not spec.background:
            refuse_opponent(self.id, opponent)
            return {}
        actions = self._options.actions
        names = dict(zip(description.agents, self._task.obs_names(self._options), strict=True))
        policies = {}
        for prey in spec.background:
            policy = opponent or make_opponent(
                self._options.prey_policy,  # type: ignore[attr-defined]
                env_id=self.id,
                side="prey",
                obs_names=names[prey],
                targets=spec.agents,
                generator=generator,
                dtype=dtype,
            )
            policies[prey] = _as_actions(policy, actions)
        return policies


class _ModuleBuild:
    """How any other `ParallelEnv` is built and described."""

    def __init__(self, env_id: str, module: str, options: Mapping[str, Any]):
        self.id, self._module, self._options = env_id, module, dict(options)
        arguments = dict(options)
        self._roles = arguments.pop("background", None) or {}
        horizon = arguments.pop("horizon", None)
        with_state = arguments.pop("state", False)
        if not isinstance(self._roles, dict):
            raise UsageError(f"option background={self._roles!r}: expected {{prefix of agents: policy}}")
        if horizon is not None and (not isinstance(horizon, int) or horizon < 1):
            raise UsageError(f"option horizon={horizon!r}: expected a positive number of steps")
        self.source = Source(module, arguments, horizon, with_state=bool(with_state))

    def spec(self, description: Description) -> EnvSpec:
        """Agents whose name starts with one of the prefixes are in the background."""
        for prefix in self._roles:
            if not any(agent.startswith(prefix) for agent in description.agents):
                raise UsageError(
                    f"option background: no agent's name starts with '{prefix}': "
                    f"{', '.join(description.agents)}"
                )
        background = [a for a in description.agents if any(a.startswith(prefix) for prefix in self._roles)]
        if len(background) == len(description.agents):
            raise UsageError("option background: no agent is left to learn")
        return describe_environment(
            self.id, f"pettingzoo:{self._module}", self._options, description, background
        )

    def background(
        self,
        description: Description,
        spec: EnvSpec,
        generator: torch.Generator,
        dtype: torch.dtype,
        opponent: Opponent | None,
    ) -> dict[str, BackgroundPolicy]:
        """Give background agents their policy: random, or a network whose best legal output is chosen."""
        policies: dict[str, BackgroundPolicy] = {}
        for agent in spec.background:
            name = next(name for prefix, name in self._roles.items() if agent.startswith(prefix))
            k = description.agents.index(agent)
            widths = description.obs_dims[k], description.action_dims[k]
            policies[agent] = _generic_policy(name, widths, spec.discrete, generator, dtype, opponent)
        if not policies:
            refuse_opponent(self.id, opponent)
        return policies


def _as_actions(policy: Opponent, actions: Actions) -> BackgroundPolicy:
    return lambda obs, legal: encode_force(policy(obs), actions)


def _generic_policy(
    name: str,
    widths: tuple[int, int],  # of what is observed, and of actions
    discrete: bool,
    generator: torch.Generator,
    dtype: torch.dtype,
    opponent: Opponent | None,
) -> BackgroundPolicy:
    observed, width = widths
    if opponent is not None:
        return lambda obs, legal: opponent(obs)
    if name == "random":

        def score(obs: Tensor) -> Tensor:
            shape = (*obs.shape[:2], width)
            return 2 * torch.rand(shape, generator=generator, device=obs.device, dtype=obs.dtype) - 1
    else:
        path = Path(str(name)).expanduser()
        if not path.is_file():
            raise UsageError(f"option background: '{name}' is neither 'random' nor a .safetensors file")
        score = network = NetworkPolicy.load(path, generator.device, dtype)
        network.require_fits(f"option background: {path.name}", observed, width, instead="random")
    if not discrete:
        return lambda obs, legal: score(obs)

    def choose(obs: Tensor, legal: Tensor | None) -> Tensor:
        scores = score(obs)
        if legal is not None:
            scores = scores.masked_fill(~legal[..., :width], -torch.inf)
        return scores.argmax(-1)

    return choose


def describe_environment(
    env_id: str,
    backend: str,
    options: Mapping[str, Any],
    description: Description,
    background: Sequence[str],
    obs_names: Mapping[str, tuple[str, ...]] | None = None,
    action_names: Mapping[str, tuple[str, ...]] | None = None,
    shared_reward: bool = False,
) -> EnvSpec:
    """The spec of what a worker described; agents whose names differ in their number only are one group."""
    agents = tuple(agent for agent in description.agents if agent not in background)
    index = {agent: k for k, agent in enumerate(description.agents)}
    groups: dict[Any, list[str]] = {}
    for agent in agents:
        k = index[agent]
        role = (agent.rstrip("0123456789"), description.obs_dims[k], description.action_dims[k])
        groups.setdefault(role, []).append(agent)
    if obs_names is None:
        obs_names = {a: tuple(f"obs_{n}" for n in range(description.obs_dims[index[a]])) for a in agents}
    if action_names is None:
        word = "choice" if description.discrete else "action"
        action_names = {
            a: tuple(f"{word}_{n}" for n in range(description.action_dims[index[a]])) for a in agents
        }
    return EnvSpec(
        id=env_id,
        backend=backend,
        options=dict(options),
        agents=agents,
        groups=tuple(tuple(group) for group in groups.values()),
        background=tuple(background),
        action_type="discrete" if description.discrete else "continuous",
        obs_names=tuple(obs_names[agent] for agent in agents),
        action_names=tuple(action_names[agent] for agent in agents),
        state_names=tuple(f"state_{n}" for n in range(description.state_dim)),
        horizon=description.horizon,
        shared_reward=shared_reward,
        versions=description.versions,
    )
