"""Recording episodes while something else steps the environment, such as online training.

Shapes: E copies of the environment, T time, R rows.
"""

import torch
from torch import Tensor

from offmarl.data.collect import frame_arrays, step_arrays
from offmarl.data.writer import Writer
from offmarl.envs.base import Environment, Frame, Step


class EpisodeRecorder:
    """Called with every step of E copies; appends an episode to `writer` as soon as it has ended.

    With `most`, recording stops after the episode that reaches so many transitions.
    """

    def __init__(self, env: Environment, writer: Writer, most: int | None = None) -> None:
        self.spec = env.spec
        self.writer = writer
        self.most = most
        self.age = torch.zeros(
            env.num_envs, dtype=torch.int64, device=env.device
        )  # steps of the running episode
        self.history: list[
            dict[str, Tensor]
        ] = []  # one entry a step, [E, ...] each, back to the oldest start

    def __call__(self, frame: Frame, action: Tensor, step: Step) -> None:
        """Take in one step of all copies."""
        self.history.append(frame_arrays(frame) | step_arrays(action, step, self.spec.has_agent_reward))
        self.age += 1
        ended = step.done.nonzero().squeeze(1)
        for length in self.age[ended].unique().tolist():
            self._append(ended[self.age[ended] == length], int(length), step)
        self.age[ended] = 0
        self.history = self.history[len(self.history) - int(self.age.max()) :]

    def _append(self, copies: Tensor, length: int, step: Step) -> None:
        """Write the episodes of `copies`, which have all just ended after `length` steps."""
        if self.most is not None:
            missing = self.most - self.writer.transitions
            copies = copies[: max(-(-missing // length), 0)]
        if not len(copies):
            return
        last = {name: torch.zeros_like(values) for name, values in self.history[-1].items()}
        last |= frame_arrays(step.successor)
        entries = [*self.history[-length:], last]
        arrays = {
            name: torch.stack([entry[name][copies] for entry in entries], dim=1).flatten(0, 1).cpu()
            for name in last
        }  # [R, ...], one episode after another
        self.writer.append(arrays, [length + 1] * len(copies))
