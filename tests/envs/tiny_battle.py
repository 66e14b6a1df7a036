"""A ParallelEnv of two teams for the adapter's tests: masks, deaths, unequal agents, a failure on request.

Every agent has `health` steps to live: red_0 one step less than the others. Choosing an illegal action fails.
"""

import functools

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class TinyBattle(ParallelEnv):
    metadata = {"name": "tiny_battle"}  # noqa: RUF012

    def __init__(self, health=3, mask_in="obs", fail_at=None, max_cycles=5, action="discrete", exit_at=None):
        self.possible_agents = ["red_0", "red_1", "blue_0"]
        self.health, self.mask_in, self.fail_at, self.exit_at = health, mask_in, fail_at, exit_at
        self.max_cycles, self.action = max_cycles, action
        self.state_space = spaces.Box(-1, 99, (2,))

    @functools.cache  # noqa: B019
    def observation_space(self, agent):
        inner = spaces.Box(0, 99, (2 if agent == "red_0" else 3,))
        if self.mask_in != "obs":
            return inner
        return spaces.Dict({"observation": inner, "action_mask": spaces.MultiBinary(self._choices(agent))})

    @functools.cache  # noqa: B019
    def action_space(self, agent):
        if self.action == "multi":
            return spaces.MultiDiscrete([2, 2])
        if self.action == "box":
            return spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]))
        return spaces.Discrete(self._choices(agent))

    def _choices(self, agent):
        return 2 if agent == "blue_0" else 3

    def state(self):
        return np.array([self.time, len(self.agents)], np.float32)

    def _mask(self, agent):
        mask = np.ones(self._choices(agent), np.int8)
        mask[self.time % len(mask)] = 0
        return mask

    def _see(self, agents):
        observations, infos = {}, {}
        for agent in agents:
            seen = np.full(2 if agent == "red_0" else 3, 10 * self.first + self.time, np.float32)
            infos[agent] = {"action_mask": self._mask(agent)} if self.mask_in == "info" else {}
            if self.mask_in == "obs":
                seen = {"observation": seen, "action_mask": self._mask(agent)}
            observations[agent] = seen
        return observations, infos

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        self.time = 0
        self.first = int(np.random.default_rng(seed).integers(1, 9))
        self.last = {}
        return self._see(self.agents)

    def step(self, actions):
        assert set(actions) == set(self.agents)
        if self.exit_at == self.time:
            import os

            os._exit(7)
        if self.fail_at == self.time:
            raise RuntimeError("the battle is off")
        if self.action == "discrete" and self.mask_in in ("obs", "info"):
            for agent, action in actions.items():
                assert self._mask(agent)[action], f"{agent} chose the illegal {action}"
        acting = list(self.agents)
        self.time += 1
        rewards = {agent: float(np.sum(actions[agent])) for agent in acting}
        terminations = {a: self.time >= self.health - (a == "red_0") for a in acting}
        truncations = {a: self.time >= self.max_cycles and not terminations[a] for a in acting}
        observations, infos = self._see(acting)
        self.agents = [a for a in acting if not (terminations[a] or truncations[a])]
        return observations, rewards, terminations, truncations, infos


def parallel_env(**options):
    return TinyBattle(**options)
