"""What the settings of all online training have in common: how long, how many copies, how much exploration."""

from dataclasses import dataclass

from offmarl.errors import UsageError
from offmarl.settings import Count, Natural, UpToOne


@dataclass(frozen=True)
class Schedule:
    """Steps are of all copies together."""

    steps: Count = 3_000
    num_envs: Count = 64
    warm_up: Count = 200  # steps of uniform actions before the first update
    # Share of random choices where actions are discrete: it falls from 1, in equal steps, to this. Data are collected
    # with this too.
    exploration: UpToOne = 0.1
    exploration_steps: Natural = 0  # after the warm-up, until that is reached
    checkpoint_every: Count = 50
    evaluation_episodes: Count = 128  # for each checkpoint

    def check(self) -> None:
        """Raise `UsageError` for settings under which no policy would come out of training."""
        first = (self.warm_up // self.checkpoint_every + 1) * self.checkpoint_every
        if self.steps < first:
            raise UsageError(
                f"behaviour.steps={self.steps}: the first checkpoint comes at step {first} "
                f"(behaviour.warm_up={self.warm_up}, behaviour.checkpoint_every={self.checkpoint_every})"
            )

    def epsilon(self, count: int) -> float:
        """Share of random choices at step `count`."""
        past = max(count - self.warm_up, 0)
        if past >= self.exploration_steps:
            return self.exploration
        return 1 - (1 - self.exploration) * past / self.exploration_steps
