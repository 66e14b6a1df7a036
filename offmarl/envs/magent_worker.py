"""What runs inside a worker process: several copies of one MAgent map, stepped by magent2's grid world.

Imports neither torch nor the rest of the package beyond the rules, so that a worker starts quickly. magent2 moves and
attacks in parallel: only with one OpenMP thread, as workers have, is the outcome decided by the seed.
Shapes: E copies of which C are this worker's, U units, M units that act, D state, O observation (widest group).
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offmarl.envs.magent_rules import NO_ACTION, Grid
from offmarl.errors import UsageError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class MagentSource:
    """What a worker needs to make its copies; `obs` [E * M * O] is memory that all processes share."""

    grid: Grid
    horizon: int
    observed: tuple[bool, ...]  # groups whose observations anybody wants
    obs: Any  # a shared array of floats
    obs_shape: tuple[int, int, int]  # [E, M, O]

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return self.grid.task

    def open(self, first: int, count: int) -> "Maps":
        """Make the copies first..first + count. Raises `UsageError` where magent2 cannot be imported."""
        return Maps(self, first, count)


class Maps:
    """C maps, stepped one after another, each begun anew when its episode ends.

    Observations of the units that live go straight into the shared memory, the rest comes as answers.
    """

    def __init__(self, source: MagentSource, first: int, count: int):
        try:
            from magent2 import gridworld
        except ImportError as error:
            raise UsageError(
                f'{source.title} needs magent2, which cannot be imported ({error}): pip install "offmarl[magent]"'
            ) from error
        self._source, self._grid = source, source.grid
        numbers = int(np.prod(source.obs_shape))
        everything = np.frombuffer(source.obs, np.float32)[:numbers].reshape(source.obs_shape)
        self._obs = everything[first : first + count]  # [C, M, O]
        self._worlds = [_world(gridworld, source.grid) for _ in range(count)]
        self._handles = [self._worlds[0].get_handles()[handle] for handle in source.grid.handles]
        self._ids = [[np.empty(0, np.int32) for _ in source.grid.groups] for _ in range(count)]  # who lives
        self._walls = [np.empty((0, 2), np.int32) for _ in range(count)]
        self._steps = [0] * count
        self._episodes = [0] * count
        self._seeds = [0] * count

    @property
    def description(self) -> dict[str, Any]:
        """Shapes as magent2 has them, by group, and its version."""
        world = self._worlds[0]
        return {
            "view": [tuple(map(int, world.get_view_space(handle))) for handle in self._handles],
            "features": [int(world.get_feature_space(handle)[0]) for handle in self._handles],
            "actions": [int(world.get_action_space(handle)[0]) for handle in self._handles],
            "version": version("magent2"),
        }

    def reset(self, seeds: list[int]) -> Arrays:
        """New episodes in all copies; the k-th episode of a copy depends on its seed and on k alone."""
        self._seeds = seeds
        self._episodes = [0] * len(seeds)
        return {"state": np.stack([self._begin(copy) for copy in range(len(seeds))])}

    def step(self, actions: NDArray[np.int32]) -> dict[str, Any]:
        """Advance all copies by the choices of all units that act, [C, M]; those of the dead are ignored.

        `ended` lists (copy, final state [D], final observations [M, O]) of episodes that ended.
        """
        states, rewards, ends, ended = [], [], [], []
        for copy, joint in enumerate(actions):
            state, reward, terminated = self._advance(copy, joint)
            truncated = self._steps[copy] >= self._source.horizon and not terminated
            if terminated or truncated:
                ended.append((copy, state, self._obs[copy].copy()))
                state = self._begin(copy)
            states.append(state)
            rewards.append(reward)
            ends.append((terminated, truncated))
        return {
            "state": np.stack(states),
            "reward": np.stack(rewards),
            "terminated": np.array([terminated for terminated, _ in ends]),
            "truncated": np.array([truncated for _, truncated in ends]),
            "ended": ended,
        }

    def close(self) -> None:
        """Nothing to release: magent2 frees a world when it is forgotten."""

    def _begin(self, copy: int) -> NDArray[np.float32]:
        drawn = np.random.SeedSequence([self._seeds[copy], self._episodes[copy]]).generate_state(1)
        self._episodes[copy] += 1
        self._steps[copy] = 0
        world = self._worlds[copy]
        world.set_seed(int(drawn[0] >> 1))
        world.reset()
        if self._grid.walls:
            before = len(world._get_walls_info())
            world.add_walls(method="random", n=self._grid.walls)
            walls = world._get_walls_info()
            inner = ((walls > 0) & (walls < self._grid.map_size - 1)).all(1)
            self._walls[copy] = walls[inner].copy()
            assert len(walls) - before == self._grid.walls == inner.sum()
        for group, handle in zip(self._grid.groups, self._handles, strict=True):
            if group.places is None:
                world.add_agents(handle, method="random", n=group.count)
            else:
                north = np.zeros((group.count, 1), np.int32)
                world.add_agents(handle, method="custom", pos=np.hstack([group.places, north]))
        nothing = np.full(self._grid.movers, NO_ACTION, np.int32)
        return self._look(copy, nothing, np.zeros(self._grid.movers, np.float32))

    def _advance(
        self, copy: int, joint: NDArray[np.int32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
        """The state and the rewards [M] that `joint` [M] leads to, and whether a side is gone."""
        world = self._worlds[copy]
        reward = np.zeros(self._grid.movers, np.float32)
        for k, group in enumerate(self._grid.groups):
            if group.moves and len(self._ids[copy][k]):
                world.set_action(self._handles[k], np.ascontiguousarray(joint[self._ids[copy][k]], np.int32))
        over = world.step()
        for k, group in enumerate(self._grid.groups):
            if group.moves and len(self._ids[copy][k]):
                reward[self._ids[copy][k]] = world.get_reward(self._handles[k])
        world.clear_dead()
        self._steps[copy] += 1
        return self._look(copy, joint, reward), reward, over

    def _look(self, copy: int, joint: NDArray[np.int32], reward: NDArray[np.float32]) -> NDArray[np.float32]:
        """The state [D] now, after the choices and rewards [M] of the step; observations go to the shared memory."""
        grid, world = self._grid, self._worlds[copy]
        columns = grid.columns
        state = np.zeros(grid.state_dim, np.float32)
        x, y, health = (state[columns[name]] for name in ("x", "y", "health"))
        last_action, last_reward = state[columns["action"]], state[columns["reward"]]
        last_action[:] = NO_ACTION
        self._obs[copy] = 0
        for k, group in enumerate(grid.groups):
            handle = self._handles[k]
            if not world.get_num(handle):  # magent2 reads beyond its memory when it looks with nobody's eyes
                self._ids[copy][k] = np.empty(0, np.int32)
                continue
            ids = self._ids[copy][k] = world.get_agent_id(handle)
            view, features = world.get_observation(handle)  # buffers that magent2 writes to again
            middle = view.shape[1] // 2
            health[ids] = view[:, middle, middle, 2]  # of whoever stands there: the viewer
            if not group.moves:
                continue
            place = world.get_pos(handle)
            x[ids], y[ids] = place[:, 0], place[:, 1]
            last_action[ids], last_reward[ids] = joint[ids], reward[ids]
            if self._source.observed[k]:
                split = view[0].size
                self._obs[copy, ids, :split] = view.reshape(len(ids), split)
                self._obs[copy, ids, split : split + features.shape[1]] = features
        if not all(map(len, self._ids[copy])):
            np.nan_to_num(self._obs[copy], copy=False)  # the share of a group of which nobody is left is 0/0
        if grid.walls:
            state[columns["wall_x"]], state[columns["wall_y"]] = self._walls[copy].T
        return state


def _world(gridworld: Any, grid: Grid) -> Any:
    """magent2's world for `grid`, empty."""
    config = gridworld.Config()
    config.set({"map_width": grid.map_size, "map_height": grid.map_size, "minimap_mode": grid.minimap})
    if grid.id_bits:
        config.set({"embedding_size": grid.id_bits})
    for kind in {group.kind.name: group.kind for group in grid.groups}.values():
        config.register_agent_type(
            kind.name,
            {
                "width": kind.body,
                "length": kind.body,
                "hp": kind.health,
                "speed": kind.speed,
                "view_range": gridworld.CircleRange(kind.view_radius),
                "attack_range": gridworld.CircleRange(kind.attack_radius),
                **kind.attributes,
            },
        )
    order = sorted(range(len(grid.groups)), key=lambda k: grid.handles[k])
    handles = {k: config.add_group(grid.groups[k].kind.name) for k in order}
    symbols = {k: gridworld.AgentSymbol(handle, index="any") for k, handle in handles.items()}
    for hit in grid.hits:
        attacker, victim = symbols[hit.attacker], symbols[hit.victim]
        paid = [(attacker, hit.attacker_reward), (victim, hit.victim_reward)]
        paid = [(symbol, value) for symbol, value in paid if value]
        if paid:
            config.add_reward_rule(
                gridworld.Event(attacker, "attack", victim),
                receiver=[symbol for symbol, _ in paid],
                value=[value for _, value in paid],
            )
    return gridworld.GridWorld(config)
