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

    Only the first `copies` are recorded, all by default: fewer thin a recording evenly from its start to its end.
    """

    def __init__(self, env: Environment, writer: Writer, copies: int | None = None) -> None:
        self.spec = env.spec
        self.writer = writer
        self.copies = env.num_envs if copies is None else copies
        self.age = torch.zeros(
            env.num_envs, dtype=torch.int64, device=env.device
        )  # steps of the running episode
        self.history: list[
            dict[str, Tensor]
        ] = []  # one entry a step, [E, ...] each, back to the oldest start

    def __call__(self, frame: Frame, action: Tensor, step: Step) -> None:
        """Take in one step of all copies."""
        self.history.append(frame_arrays(frame, self.spec) | step_arrays(frame, action, step, self.spec))
        self.age += 1
        ended = step.done.nonzero().squeeze(1)
        recorded = ended[ended < self.copies]
        for length in self.age[recorded].unique().tolist():
            self._append(recorded[self.age[recorded] == length], int(length), step)
        self.age[ended] = 0
        self.history = self.history[len(self.history) - int(self.age.max()) :]

    def _append(self, copies: Tensor, length: int, step: Step) -> None:
        """Write the episodes of `copies`, which have all just ended after `length` steps."""
        last = {name: torch.zeros_like(values) for name, values in self.history[-1].items()}
        last |= frame_arrays(step.successor, self.spec)
        entries = [*self.history[-length:], last]
        arrays = {
            name: torch.stack([entry[name][copies] for entry in entries], dim=1).flatten(0, 1).cpu()
            for name in last
        }  # [R, ...], one episode after another
        self.writer.append(arrays, [length + 1] * len(copies))
