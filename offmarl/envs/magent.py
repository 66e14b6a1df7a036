"""MAgent's battles, pursuits and gatherings (Zheng et al. 2018): hundreds of agents on one map, many maps at once.

One side learns and the other follows a policy in the background (`random`, `charge`, or what `make(..., opponent=...)`
is given), or both sides learn: `background=none` makes every unit an agent, and each side a group of the spec, so that
one joint action moves both. The state is everything that a view depends on, and datasets hold it alone: see
`magent_render`.

Shapes: E copies, N learning agents, P background agents, M units that act, D state, O observation, K choices.
"""

import multiprocessing
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Frame, Policy, Step
from offmarl.envs.magent_options import OPTIONS, MagentOptions, grid_of
from offmarl.envs.magent_rules import VERSION
from offmarl.envs.magent_worker import MagentSource
from offmarl.envs.opponents.policy import Opponent, refuse_opponent
from offmarl.envs.options import read_options
from offmarl.envs.pettingzoo import Workers
from offmarl.errors import UsageError, unknown_name
from offmarl.streams import stream_seed


def describe(env_id: str, options: Mapping[str, Any]) -> EnvSpec:
    """The spec of a task, without touching magent2. Raises like `grid_of`, and where magent2 is not installed."""
    chosen: MagentOptions = read_options(env_id, OPTIONS[env_id], options)
    grid = grid_of(env_id, options)
    background = getattr(chosen, "background", "none")
    names = grid.unit_names()
    groups, obs_names, action_names = [], [], []
    for k, group in enumerate(grid.groups):
        if group.moves and group.name != background:
            groups.append(names[grid.slots(k)])
            obs_names += [grid.obs_names(k)] * group.count
            action_names += [group.kind.actions] * group.count
    agents = tuple(name for group in groups for name in group)
    owner = {agent: i for i, agent in enumerate(agents)}
    state_names = grid.state_names()
    return EnvSpec(
        id=env_id,
        backend="magent",
        options=asdict(replace(chosen, map_size=grid.map_size)),
        agents=agents,
        groups=tuple(groups),
        background=names[grid.slots(grid.number(background))] if background != "none" else (),
        action_type="discrete",
        rendered=True,
        obs_names=tuple(obs_names),
        action_names=tuple(action_names),
        state_names=state_names,
        state_owner=tuple(owner.get(name.partition(".")[0], -1) for name in state_names),
        horizon=chosen.horizon,
        versions={"magent2": _installed(env_id)},
    )


def other_side(spec: EnvSpec) -> EnvSpec:
    """The spec of the same task where the background learns: what a policy for it must fit.

    Raises `UsageError` where every agent learns.
    """
    if not spec.background:
        raise UsageError(f"{spec.id}: every agent learns here, there is no other side")
    mine = spec.agents[0].rpartition("_")[0]
    return describe(spec.id, {**spec.options, "background": mine, "opponent": "random"})


def _installed(env_id: str) -> str:
    try:
        found = version("magent2")
    except PackageNotFoundError as error:
        raise UsageError(
            f'{env_id} needs magent2, which is not installed: pip install "offmarl[magent]"'
        ) from error
    if found != VERSION:
        raise UsageError(
            f'{env_id} follows magent2 {VERSION}, {found} is installed: pip install "magent2=={VERSION}"'
        )
    return found


class MagentEnvironment(Environment):
    """E maps behind worker processes. Close it, or use it in a `with` block.

    A dead agent observes zeros, earns nothing more, and what it is told to do is ignored; `Frame.alive` says who
    lives, and the step in which an agent died still pays its reward. Annihilation of a side is terminal, the time
    limit is truncation. `won` is that of the first group: all its enemies are dead. Where both sides of a battle
    learn, the team reward is the sum over both. Without `views` observations are empty, for those who render what
    they need from the state.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        opponent: Policy | Opponent | None = None,
        processes: int | None = None,
        views: bool = True,
    ):
        self.spec = spec
        self.num_envs = num_envs
        self.device = torch.device(device)
        self._dtype = dtype
        self._grid = grid = grid_of(spec.id, spec.options)
        names = grid.unit_names()
        index = {name: i for i, name in enumerate(names[: grid.movers])}
        self._learning = _span([index[name] for name in spec.agents])
        self._background = _span([index[name] for name in spec.background])
        self._enemies = self._sides(spec)
        self._opponent = opponent
        self._generator = torch.Generator(self.device)  # what the background draws from
        self._choices = [
            len(group.kind.actions) for group in grid.groups if group.moves for _ in range(group.count)
        ]  # [M]
        widths = {len(actions) for actions in spec.action_names}
        self._legal = None
        if len(widths) > 1:
            possible = [[k < len(actions) for k in range(max(widths))] for actions in spec.action_names]
            self._legal = torch.tensor(possible, device=self.device).expand(num_envs, -1, -1)  # [E, N, K]

        self._widths = [len(grid.obs_names(k)) for k, group in enumerate(grid.groups) if group.moves]
        shape = (num_envs, grid.movers, max(self._widths) if views else 0)
        numbers = int(np.prod(shape))
        shared = multiprocessing.get_context("spawn").RawArray("f", max(numbers, 1))
        self._obs = np.frombuffer(shared, np.float32)[:numbers].reshape(
            shape
        )  # [E, M, O of the widest group]
        watched = {*spec.agents, *(spec.background if opponent is not None else ())} if views else set()
        observed = tuple(f"{group.name}_0" in watched for group in grid.groups)
        self._workers = Workers(
            MagentSource(grid, spec.horizon, observed, shared, shape), num_envs, processes
        )
        self._state: np.ndarray | None = None  # [E, D]
        self._check_shapes()

    def reset(self, seed: int) -> Frame:
        """Start a new episode in every copy; the same seed gives the same episodes, however many workers."""
        self._generator.manual_seed(stream_seed(seed, "magent", "background"))
        seeds = [stream_seed(seed, "magent", copy) for copy in range(self.num_envs)]
        answers = self._workers.ask("reset", [seeds[chunk] for chunk in self._workers.chunks])
        self._state = np.concatenate([answer["state"] for answer in answers])
        if isinstance(self._opponent, Policy):
            everywhere = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
            self._opponent.begin(everywhere, self._generator)
        return self._frame(self._learning, self._state, self._obs)

    def step(self, action: Tensor) -> Step:
        """Advance every copy by one joint choice [E, N]; the choices of the dead are ignored.

        Raises `UsageError` before the first `reset`, for another shape and for choices that do not exist;
        `OffmarlError` if magent2 fails.
        """
        if self._state is None:
            raise UsageError("call reset before step")
        joint = np.zeros((self.num_envs, self._grid.movers), np.int32)
        joint[:, self._learning] = self._checked(action, self._learning)
        if self.spec.background:
            joint[:, self._background] = self._checked(self._react(self._state), self._background)
        answers = self._workers.ask("step", [joint[chunk] for chunk in self._workers.chunks])
        self._state = state = np.concatenate([answer["state"] for answer in answers])
        frame = successor = self._frame(self._learning, state, self._obs)
        final = state
        terminated = np.concatenate([answer["terminated"] for answer in answers])
        truncated = np.concatenate([answer["truncated"] for answer in answers])
        if (terminated | truncated).any():
            final, obs = state.copy(), self._obs.copy()
            for chunk, answer in zip(self._workers.chunks, answers, strict=True):
                for copy, last_state, last_obs in answer["ended"]:
                    final[chunk.start + copy], obs[chunk.start + copy] = last_state, last_obs
            successor = self._frame(self._learning, final, obs)
        if isinstance(self._opponent, Policy):
            self._opponent.begin(torch.from_numpy(terminated | truncated).to(self.device), self._generator)
        reward = np.concatenate([answer["reward"] for answer in answers])[:, self._learning]
        agent_reward = torch.from_numpy(np.ascontiguousarray(reward)).to(self.device, self._dtype)
        return Step(
            frame=frame,
            successor=successor,
            team_reward=agent_reward.sum(1),
            agent_reward=agent_reward,
            terminated=torch.from_numpy(terminated).to(self.device),
            truncated=torch.from_numpy(truncated).to(self.device),
            won=self._won(final, terminated),
        )

    def close(self) -> None:
        """Stop the workers."""
        self._workers.close()

    def _react(self, state: np.ndarray) -> Tensor:
        """What the background does, [E, P]."""
        if self._opponent is None:
            choices = self._choices[self._background.start]
            shape = (self.num_envs, self._background.stop - self._background.start)
            return torch.randint(choices, shape, generator=self._generator, device=self.device)
        frame = self._frame(self._background, state, self._obs)
        if isinstance(self._opponent, Policy):
            return self._opponent.act(frame, self._generator)
        return self._opponent(frame.obs)

    def _frame(self, units: slice, state: np.ndarray, obs: np.ndarray) -> Frame:
        """What one side sees."""
        columns = self._grid.columns
        own = {name: state[:, columns[name]][:, units] for name in ("x", "y", "health")}
        return Frame(
            obs=self._tensor(obs[:, units, : self._widest(units)]),
            state=self._tensor(state),
            legal=self._legal if units == self._learning else None,
            alive=torch.from_numpy(own["health"] > 0).to(self.device),
            position=self._tensor(np.stack([own["x"], own["y"]], -1)),
        )

    def _widest(self, units: slice) -> int:
        """O of one side."""
        starts = [self._grid.slots(k).start for k in range(len(self._widths))]
        inside = zip(self._widths, starts, strict=True)
        return max(width for width, start in inside if units.start <= start < units.stop)

    def _won(self, state: np.ndarray, terminated: np.ndarray) -> Tensor | None:
        """Whether the first group lives and all its enemies are dead, [E]; None where nobody fights."""
        if self._enemies is None:
            return None
        health = state[:, self._grid.columns["health"]]
        mine, theirs = self._enemies
        won = terminated & (health[:, mine] > 0).any(1) & ~(health[:, theirs] > 0).any(1)
        return torch.from_numpy(won).to(self.device)

    def _sides(self, spec: EnvSpec) -> tuple[slice, slice] | None:
        """The units of the first group and of its enemies, in a battle."""
        if spec.id != "magent_battle":
            return None
        mine = self._grid.number(spec.agents[0].rpartition("_")[0])
        return self._grid.slots(mine), self._grid.slots(1 - mine)

    def _checked(self, action: Tensor, units: slice) -> np.ndarray:
        """Choices [E, units] that exist."""
        expected = (self.num_envs, units.stop - units.start)
        if action.shape != expected:
            raise UsageError(f"{self.spec.id}: actions have shape {tuple(action.shape)}, expected {expected}")
        chosen = action.to("cpu", torch.int32).numpy()
        wrong = (chosen < 0) | (chosen >= np.array(self._choices[units]))
        if wrong.any():
            copy, agent = (int(where[0]) for where in np.nonzero(wrong))
            raise UsageError(
                f"{self.spec.id}: choice {chosen[copy, agent]} of agent {agent} does not exist, "
                f"expected 0 to {self._choices[units][agent] - 1}"
            )
        return chosen

    def _check_shapes(self) -> None:
        """Hold magent2 against the rules that data is rendered by."""
        described = self._workers.ask("describe")[0]
        grid = self._grid
        for k, group in enumerate(grid.groups):
            side = len(group.kind.view)
            known = ((side, side, grid.channels), len(grid.feature_names(k)), len(group.kind.actions))
            found = tuple(described[name][k] for name in ("view", "features", "actions"))
            if found != known:
                self.close()
                raise UsageError(
                    f"{self.spec.id}: magent2 {described['version']} gives a {group.name} {found} (view, features, "
                    f'actions), expected {known}: pip install "magent2=={VERSION}"'
                )

    def _tensor(self, array: np.ndarray) -> Tensor:
        """A copy: the shared memory is written to again."""
        return torch.from_numpy(np.array(array)).to(self.device, self._dtype)


def _span(units: list[int]) -> slice:
    """Units that stand together, as a slice."""
    return slice(units[0], units[-1] + 1) if units else slice(0, 0)


def make_magent(
    env_id: str,
    num_envs: int,
    options: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    opponent: Policy | Opponent | None = None,
    processes: int | None = None,
    views: bool = True,
) -> MagentEnvironment:
    """E copies of a MAgent task; without `views` frames hold empty observations.

    `opponent` is a policy for the task of `other_side`, which is shown what that side sees, or a function of
    its observations [E, P, O] to choices [E, P]; it is recorded as "custom". Raises `UsageError` where magent2 is
    missing or another version than the rules', and for options that cannot be.
    """
    resolved = read_options(env_id, OPTIONS[env_id], options)
    named = getattr(resolved, "opponent", "random")
    if named not in ("random", "charge"):
        raise unknown_name("opponent", named, ["random", "charge"])
    if named != "random" and getattr(resolved, "background", "none") == "none":
        raise UsageError(
            f"{env_id}: env.opponent={named} plays what env.background names, and that is nobody: leave it out"
        )
    if opponent is not None:
        if getattr(resolved, "background", "none") == "none":
            refuse_opponent(env_id, opponent)
        # An environment with a caller's opponent cannot be rebuilt from its spec.
        resolved = replace(resolved, opponent="custom")
    spec = describe(env_id, asdict(resolved))
    if spec.background and named == "charge" and opponent is None:
        from offmarl.envs.magent_charge import Charge

        opponent = Charge(other_side(spec))
    return MagentEnvironment(spec, num_envs, device, dtype, opponent, processes, views)
