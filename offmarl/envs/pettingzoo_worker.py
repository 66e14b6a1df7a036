"""What runs inside a worker process: several copies of one PettingZoo `ParallelEnv`.

Imports neither torch nor the rest of the package, so that a worker starts quickly.
Shapes: C copies of this worker, P agents (learning and background), O observation, A action, K choices, D
state.
"""

import signal
import traceback
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from offmarl.errors import UsageError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """Where the environment comes from: `module.parallel_env(**options)`."""

    module: str
    options: dict[str, Any]
    horizon: int | None = None  # truncate here, whatever the environment does
    forces: bool = False  # mpe2 only: actions are 2-D forces, to be turned into presses of its buttons
    with_state: bool = False
    exact_ends: bool = False  # the environment never calls it termination when time runs out
    packages: tuple[str, ...] = ()  # whose versions are recorded, instead of PettingZoo's and the module's
    called: str = ""  # in messages, where it is not the module that the reader knows it by

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return self.called or self.module

    def open(self, first: int, count: int) -> "Copies":
        """Make the copies of one worker."""
        return Copies(self, count)


class Opens(Protocol):
    """What a worker is started with: makes the copies numbered from `first`, whose methods are then asked for."""

    @property
    def title(self) -> str:
        """What to call it in messages."""

    def open(self, first: int, count: int) -> Any:
        """Make `count` copies, with an attribute `description` and a method `close`."""


@dataclass(frozen=True)
class Description:
    """What the parent must know to write the spec."""

    agents: tuple[str, ...]
    obs_dims: tuple[int, ...]
    action_dims: tuple[int, ...]  # A of continuous actions, K of discrete ones
    discrete: bool
    horizon: int
    state_dim: int
    winnable: bool  # agents' infos say whether the episode was `won`
    names: dict[str, list[Any]]  # what numbers and choices are called, where the environment says
    versions: dict[str, str]


class Copies:
    """C copies of the environment, stepped one after another, each reset when its episode ends."""

    def __init__(self, source: Source, count: int):
        self._source = source
        try:
            build = import_module(source.module).parallel_env
        except ImportError as error:
            raise UsageError(f"backend pettingzoo: cannot import '{source.module}' ({error})") from error
        except AttributeError as error:
            raise UsageError(f"backend pettingzoo: '{source.module}' has no parallel_env(...)") from error
        try:
            self._envs = [build(**source.options) for _ in range(count)]
        except TypeError as error:
            raise UsageError(f"{source.module}.parallel_env(**{source.options}): {error}") from error
        env = self._envs[0]
        self._agents: list[str] = list(env.possible_agents)
        self._obs_spaces = {agent: _observation_space(env, agent) for agent in self._agents}
        self._action_spaces = {agent: env.action_space(agent) for agent in self._agents}
        self.description = self._describe()
        dims = np.array(self.description.action_dims)
        self._possible = np.arange(dims.max()) < dims[:, None]  # [P, K]: choices that an agent has at all
        self._learning = set(self._agents)
        self._steps = [0] * count
        self._episodes = [0] * count
        self._seeds = [0] * count

    def _describe(self) -> Description:
        from gymnasium import spaces

        kinds = set()
        dims = []
        for agent, space in self._action_spaces.items():
            if isinstance(space, spaces.Discrete):
                dims.append(int(space.n))
            elif isinstance(space, spaces.Box):
                if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                    raise UsageError(
                        f"the action space of {agent} has no bounds: {space}; wrap it to give it some"
                    )
                dims.append(int(np.prod(space.shape)) - 3 * self._source.forces)
            else:
                raise UsageError(
                    f"the action space of {agent} is {space}; only Box and Discrete can be used, wrap others"
                )
            kinds.add(type(space))
        if len(kinds) > 1:
            raise UsageError("some agents have continuous actions and some discrete ones; make them alike")
        env = self._envs[0]
        horizon = self._source.horizon or getattr(env.unwrapped, "max_cycles", None)
        if not isinstance(horizon, int) or horizon < 1:
            raise UsageError(
                f"{self._source.title} does not say after how many steps an episode ends: "
                "--set env.horizon=25 cuts them there"
            )
        state_dim = 0
        if self._source.with_state:
            space = getattr(env, "state_space", None)
            if space is None:
                raise UsageError(f"{self._source.title} has no state_space: leave out the option state=true")
            state_dim = int(spaces.flatdim(space))
        return Description(
            agents=tuple(self._agents),
            obs_dims=tuple(int(spaces.flatdim(self._obs_spaces[agent])) for agent in self._agents),
            action_dims=tuple(dims),
            discrete=kinds == {spaces.Discrete},
            horizon=horizon,
            state_dim=state_dim,
            winnable=bool(getattr(env.unwrapped, "winnable", False)),
            names=getattr(env.unwrapped, "names", {}),
            versions=_versions(self._source.packages or ("pettingzoo", self._source.module)),
        )

    def start(self, learning: list[str]) -> None:
        """Say which agents learn: an episode is over when none of them is left."""
        self._learning = set(learning)

    def reset(self, seeds: list[int]) -> Arrays:
        """New episodes in all copies; the k-th episode of a copy depends on its seed and on k alone."""
        self._seeds = seeds
        self._episodes = [0] * len(seeds)
        return self._stack([self._begin(copy) for copy in range(len(seeds))])

    def step(self, actions: NDArray[Any]) -> dict[str, Any]:
        """Advance all copies by a joint action [C, P, A] in [-1, 1] or [C, P] integers."""
        successors, frames, rewards, ends = [], [], [], []
        native = {agent: self._native(agent, actions[:, k]) for k, agent in enumerate(self._agents)}
        for copy in range(len(actions)):
            joint = {agent: native[agent][copy] for agent in self._envs[copy].agents}
            successor, reward, terminated, truncated, victory = self._advance(copy, joint)
            ended = terminated or truncated
            successors.append(successor)
            frames.append(self._begin(copy) if ended else successor)
            rewards.append(reward)
            ends.append((terminated, truncated, victory))
        return {
            "successor": self._stack(successors),
            "frame": self._stack(frames),
            "reward": np.stack(rewards),
            "terminated": np.array([terminated for terminated, _, _ in ends]),
            "truncated": np.array([truncated for _, truncated, _ in ends]),
            "won": np.array([victory for _, _, victory in ends]),
        }

    def picture(self, copy: int | None) -> NDArray[Any] | None:
        """What a copy draws of itself, [H, W, 3] uint8; None where it cannot, or where none is asked for."""
        if copy is None:
            return None
        drawn = self._envs[copy].render()
        return np.asarray(drawn, np.uint8) if isinstance(drawn, np.ndarray) and drawn.ndim == 3 else None

    def close(self) -> None:
        """Release the simulators."""
        for env in self._envs:
            env.close()

    def _begin(self, copy: int) -> Arrays:
        env = self._envs[copy]
        drawn = np.random.SeedSequence([self._seeds[copy], self._episodes[copy]]).generate_state(1)
        self._episodes[copy] += 1
        self._steps[copy] = 0
        observations, infos = env.reset(seed=int(drawn[0] >> 1))
        return self._snapshot(copy, observations, infos, set(env.agents))

    def _advance(self, copy: int, joint: dict[str, Any]) -> tuple[Arrays, NDArray[Any], bool, bool, bool]:
        env = self._envs[copy]
        acting = list(joint)
        observations, rewards, terminations, truncations, infos = env.step(joint)
        self._steps[copy] += 1

        left = {agent for agent in env.agents if not (terminations.get(agent) or truncations.get(agent))}
        over = not (left & self._learning)
        out_of_time = self._steps[copy] >= self.description.horizon and not self._source.exact_ends
        cut = out_of_time or any(truncations.get(agent, False) for agent in acting if agent in self._learning)
        truncated = cut and (over or out_of_time)
        terminated = over and not truncated
        # Who leaves in the last step still has its final observation; who left earlier is dead.
        alive = set(acting) if terminated else left | {a for a in acting if truncations.get(a, False)}
        reward = np.array([float(rewards.get(agent, 0.0)) for agent in self._agents], np.float32)
        won = any(infos.get(agent, {}).get("won", False) for agent in self._learning)
        return self._snapshot(copy, observations, infos, alive), reward, terminated, truncated, won

    def _native(self, agent: str, action: NDArray[Any]) -> NDArray[Any]:
        """The agent's actions in all copies, in the environment's own convention."""
        space = self._action_spaces[agent]
        if self.description.discrete:
            return action + space.start
        size = int(np.prod(space.shape))
        if self._source.forces:
            force, spoken = action[:, :2], action[:, 2 : size - 3]
            native = np.zeros((len(action), size), space.dtype)
            native[:, 1:5:2] = np.clip(-force, 0, 1)  # left, down
            native[:, 2:5:2] = np.clip(force, 0, 1)  # right, up
            native[:, 5:] = (np.clip(spoken, -1, 1) + 1) / 2
            return native
        share = (np.clip(action[:, :size], -1, 1) + 1) / 2
        return (space.low + share.reshape(-1, *space.shape) * (space.high - space.low)).astype(space.dtype)

    def _snapshot(
        self, copy: int, observations: dict[str, Any], infos: dict[str, Any], alive: set[str]
    ) -> Arrays:
        """What can be seen of one copy: padded arrays, zero for agents that are dead."""
        described = self.description
        obs = np.zeros((len(self._agents), max(described.obs_dims)), np.float32)
        living = np.zeros(len(self._agents), bool)
        legal = self._possible.copy()
        for k, agent in enumerate(self._agents):
            if agent not in alive or agent not in observations:
                continue
            info = infos.get(agent, {})
            living[k] = info.get("alive", True)  # the dead may stay, with nothing to do
            seen = observations[agent]
            mask = info.get("action_mask")
            if isinstance(seen, dict) and "observation" in seen:
                mask = seen.get("action_mask", mask)
                seen = seen["observation"]
            obs[k, : described.obs_dims[k]] = _flat(self._obs_spaces[agent], seen)
            if described.discrete and mask is not None:
                legal[k, : described.action_dims[k]] = np.asarray(mask, bool)
        snapshot: Arrays = {"obs": obs, "alive": living}
        if described.discrete:
            snapshot["legal"] = legal
        if self._source.with_state:
            snapshot["state"] = _flat(self._envs[copy].state_space, self._envs[copy].state())
        return snapshot

    @staticmethod
    def _stack(snapshots: list[Arrays]) -> Arrays:
        return {name: np.stack([snapshot[name] for snapshot in snapshots]) for name in snapshots[0]}


def serve(connection: Connection, source: Opens, first: int, count: int) -> None:
    """Answer the parent's requests until it says `close` or is gone. Copies are numbered from `first`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    copies = None
    try:
        while True:
            request, *arguments = connection.recv()
            if request == "close":
                break
            try:
                if copies is None:
                    copies = source.open(first, count)
                answer = copies.description if request == "describe" else getattr(copies, request)(*arguments)
            except Exception as error:  # whatever a third-party simulator raises is the reader's to see
                which = f"copies {first}..{first + count - 1}"
                text = f"{type(error).__name__}: {error} (in {request}, {which} of {source.title})"
                wrong_use = isinstance(error, UsageError)
                connection.send(
                    ("failed", str(error) if wrong_use else text, wrong_use, traceback.format_exc())
                )
                break
            connection.send(("done", answer))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        if copies is not None:
            copies.close()
        connection.close()


def _observation_space(env: Any, agent: str) -> Any:
    """The space of the observation proper, without the mask that may be beside it."""
    from gymnasium import spaces

    space = env.observation_space(agent)
    if isinstance(space, spaces.Dict) and "observation" in space.spaces:
        return space["observation"]
    return space


def _flat(space: Any, value: Any) -> NDArray[Any]:
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        return np.asarray(value, np.float32).ravel()
    return np.asarray(spaces.flatten(space, value), np.float32)


def _versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Versions of the packages that the modules belong to."""
    distributions = packages_distributions()
    names = {name for module in modules for name in distributions.get(module.partition(".")[0], [])}
    versions = {}
    for name in sorted(names):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
