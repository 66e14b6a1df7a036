"""The Gymnasium multi-agent convention as a PettingZoo `ParallelEnv`; runs inside worker processes.

Level-based foraging, the robotic warehouse and others of their kind are Gymnasium environments whose spaces are
tuples with one entry an agent: `reset` gives a tuple of observations, `step` takes a list of actions and gives a
list of rewards, and the episode ends for all agents at once. Imports neither torch nor the rest of the package.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from gymnasium import Env, make, spaces
from gymnasium.error import Error as GymnasiumError

from offmarl.errors import UsageError


def parallel_env(target: str, arguments: dict[str, Any], horizon: int | None = None) -> "TupleEnv":
    """Make the environment that `target` names, with `arguments`.

    `target` is `module:Class`, `module:Environment-v0` (the module registers the id) or a registered id.
    `horizon` cuts an episode that the environment has not ended by then.
    """
    return TupleEnv(target, _build(target, arguments), horizon)


def _build(target: str, arguments: dict[str, Any]) -> Env[Any, Any]:
    module, colon, name = target.partition(":")
    try:
        if colon and name.isidentifier():
            built: Env[Any, Any] = getattr(import_module(module), name)(**arguments)
            return built
        return make(target, disable_env_checker=True, **arguments)
    except ImportError as error:
        raise UsageError(f"backend gymnasium: cannot import '{module}' ({error})") from error
    except AttributeError as error:
        raise UsageError(f"backend gymnasium: '{module}' has no '{name}'") from error
    except GymnasiumError as error:
        raise UsageError(f"backend gymnasium: {error}") from error
    except (TypeError, AssertionError) as error:
        raise UsageError(f"backend gymnasium: {target} does not take {arguments}: {error}") from error


class TupleEnv:
    """A Gymnasium environment of tuples, spoken to by the names of its agents, agent_0 and so on."""

    def __init__(self, target: str, env: Any, horizon: int | None):
        for kind in ("observation_space", "action_space"):
            space = getattr(env, kind, None)
            if not isinstance(space, spaces.Tuple):
                raise UsageError(
                    f"backend gymnasium: the {kind} of {target} is {type(space).__name__}, expected a Tuple with "
                    "one space an agent"
                )
        assert isinstance(env.observation_space, spaces.Tuple)
        assert isinstance(env.action_space, spaces.Tuple)
        counts = len(env.observation_space.spaces), len(env.action_space.spaces)
        if counts[0] != counts[1]:
            raise UsageError(
                f"backend gymnasium: {target} has {counts[0]} observation and {counts[1]} action spaces"
            )
        self._target, self._env, self._horizon = target, env, horizon
        self.possible_agents = [f"agent_{i}" for i in range(counts[0])]
        self.agents: list[str] = []
        self._index = {agent: i for i, agent in enumerate(self.possible_agents)}
        self._observation_spaces, self._action_spaces = env.observation_space, env.action_space
        self.max_cycles = horizon or (env.spec.max_episode_steps if env.spec else None)
        width = sum(spaces.flatdim(space) for space in self._observation_spaces.spaces)
        self.state_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self._state = np.zeros(width, np.float32)
        self._steps = 0

    @property
    def unwrapped(self) -> "TupleEnv":
        """Itself."""
        return self

    def observation_space(self, agent: str) -> Any:
        """What the agent sees."""
        return self._observation_spaces[self._index[agent]]

    def action_space(self, agent: str) -> Any:
        """What the agent can do."""
        return self._action_spaces[self._index[agent]]

    def state(self) -> Any:
        """All observations, one after another."""
        return self._state

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode."""
        self._steps = 0
        self.agents = list(self.possible_agents)
        observations, info = self._env.reset(seed=seed)
        return self._by_agent(observations), self._masks(info)

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """Advance by one joint action; an end is everybody's."""
        self._steps += 1
        # Plain numbers: these environments look actions up in enumerations.
        joint = [_plain(actions[agent]) for agent in self.possible_agents]
        observations, rewards, terminated, truncated, info = self._env.step(joint)
        if np.shape(rewards) != (len(joint),):
            raise UsageError(
                f"{self._target} pays {rewards!r}, expected a list of {len(joint)} rewards, one an agent"
            )
        over = bool(np.all(terminated))
        cut = not over and (
            bool(np.all(truncated)) or (self._horizon is not None and self._steps >= self._horizon)
        )
        agents, self.agents = self.agents, [] if over or cut else self.agents
        return (
            self._by_agent(observations),
            dict(zip(self.possible_agents, rewards, strict=True)),
            dict.fromkeys(agents, over),
            dict.fromkeys(agents, cut),
            self._masks(info),
        )

    def close(self) -> None:
        """Release the environment."""
        self._env.close()

    def _by_agent(self, observations: Sequence[Any]) -> dict[str, Any]:
        flat: list[Any] = [
            spaces.flatten(space, seen)
            for space, seen in zip(self._observation_spaces.spaces, observations, strict=True)
        ]
        self._state = np.concatenate(flat).astype(np.float32)
        return dict(zip(self.possible_agents, observations, strict=True))

    def _masks(self, info: dict[str, Any]) -> dict[str, Any]:
        """What is legal, where the environment says so by one mask an agent."""
        masks = info.get("action_mask")
        if masks is None or len(masks) != len(self.possible_agents):
            return {}
        return {agent: {"action_mask": mask} for agent, mask in zip(self.possible_agents, masks, strict=True)}


def _plain(action: Any) -> Any:
    return action.item() if np.ndim(action) == 0 else action
