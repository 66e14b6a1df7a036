"""A Gymnasium environment of tuples for the adapter's tests: masks, unequal agents, wrong shapes on request."""

import gymnasium
import numpy as np
from gymnasium import spaces


class TupleGame(gymnasium.Env):
    """Agents count steps; who chose 1 is paid 1, 2 is paid 2. Over when somebody chose 2."""

    def __init__(self, masks=False, pays="each", time_is="truncation", spaces_of=2):
        self.observation_space = spaces.Tuple([spaces.Box(0, 99, (2,)), spaces.Box(0, 99, (3,))])
        self.action_space = spaces.Tuple([spaces.Discrete(3)] * spaces_of)
        self.masks, self.pays, self.time_is = masks, pays, time_is

    def _see(self):
        return (np.full(2, self.time, np.float32), np.full(3, self.first, np.float32))

    def _info(self):
        return {"action_mask": [[1, 1, 0], [0, 1, 1]]} if self.masks else {}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.first = 0, int(self.np_random.integers(1, 90))
        return self._see(), self._info()

    def step(self, actions):
        assert all(type(action) is int for action in actions)
        self.time += 1
        rewards = [float(action) for action in actions]
        ends = self.time >= 5
        over = 2 in actions or (ends and self.time_is == "termination")
        return (
            self._see(),
            sum(rewards) if self.pays == "team" else rewards,
            over,
            ends and not over,
            self._info(),
        )


gymnasium.register("TupleGame-v0", entry_point="tuple_game:TupleGame", max_episode_steps=4)
NOT_TUPLES = "CartPole-v1"
