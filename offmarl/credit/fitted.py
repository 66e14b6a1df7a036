"""What decompositions that are learned share: guards, split, standardised samples, and the way back to the units of R.

Shapes: R dataset rows, n transitions, N agents, V variables that vary, H held-out rows.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offmarl.credit.base import Credit, Decomposer, Progress
from offmarl.credit.inputs import input_layout
from offmarl.credit.samples import Samples, Scale, prepare, varies
from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.settings import Count, Share

FEWEST_EPISODES = 10  # fewer cannot be split and resampled
ONLY_AGENT = "the only agent: its reward is R"  # a verdict
ASSIGN_CHUNK = 32_768  # agents x rows predicted at a time


@dataclass
class FitConfig:
    """What every learned decomposition lets you set."""

    heldout: Share = 0.1  # share of the episodes that are never fitted
    max_transitions: Count = 200_000  # fit on at most so many; the answer covers all rows
    exact_sum: bool = True  # add (R - Σ r̂)/N: better where rewards are deterministic, worse where noisy


@dataclass
class OwnerConfig:
    """What decompositions let you set that ask whose a variable is."""

    owner: dict[str, str] = field(default_factory=dict)  # where the task's map is wrong


class FittedDecomposer(Decomposer):
    """A decomposition that is learned from standardised transitions, on episodes of which some are held out.

    The living share constants equally (no data tells whose they are), and R/N is the answer where nothing can be
    fitted or checked: fewer than 10 episodes, or a constant reward.
    """

    config: FitConfig
    reason: str  # why the answer is R/N, empty where it is not
    exact: str  # the verdict where R/N is known to be exact, empty where it is not
    scale: Scale
    heldout_rows: Tensor | None  # [H]
    mask: Tensor | None  # [N, V] bool: edges found
    edge_probability: Tensor | None  # [N, V]
    shared_parents: Tensor | None  # [V] bool: nobody's variables that all reward functions see

    def __init__(
        self,
        spec: EnvSpec,
        config: FitConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        super().__init__(spec, config, seed, device, progress)
        self.config = config
        self.layout = input_layout(spec, config.owner if isinstance(config, OwnerConfig) else None)
        self.forget()

    def forget(self) -> None:
        """Know nothing yet."""
        self.reason = self.exact = ""
        self.heldout_rows = self.mask = self.edge_probability = self.shared_parents = None

    def fit(self, transitions: Transitions) -> None:
        """Learn the split, unless there is nothing to learn from; then `reason` says what is missing."""
        self.forget()
        if self.spec.n_agents == 1:
            self.reason, self.exact = "there is one agent: its reward is the team's", ONLY_AGENT
            return
        if transitions.n_episodes < FEWEST_EPISODES:
            self.reason = (
                f"{transitions.n_episodes} episodes are too few to hold some out: {FEWEST_EPISODES} needed"
            )
            return
        limits = self.config.heldout, self.config.max_transitions
        samples = prepare(transitions, *limits, self.seed, self.device, self.layout)
        self.heldout_rows, self.scale = samples.heldout_rows, samples.scale
        if not samples.scale.reward_std or not len(samples.scale.varying):
            constant = "the team reward" if not samples.scale.reward_std else "every observation and action"
            self.reason = f"{constant} is constant: there is nothing to explain"
            return
        if not bool(varies(transitions.column("team_reward")[samples.heldout_rows.to(transitions.device)])):
            self.reason = (
                f"the team reward never varies where it was held out (transitions: {len(samples.heldout_rows)}): "
                "no split can be checked; collect more episodes"
            )
            return
        self.learn(samples, transitions)

    @abstractmethod
    def learn(self, samples: Samples, transitions: Transitions) -> None:
        """Learn from `samples` of `transitions`; called by `fit`."""

    # -- pieces of an answer -------------------------------------------------------------------------------

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """Parts of `rows` [n] of a size to predict at a time."""
        yield from rows.split(max(256, ASSIGN_CHUNK // self.spec.n_agents))

    def in_units_of_reward(
        self,
        individual: Tensor,
        constants: Tensor | float,
        transitions: Transitions,
        rows: Tensor,
        alive: Tensor,
    ) -> Tensor:
        """Rewards [n, N] in the units of R from those in its standard deviations, zero for the dead.

        `constants` [n, 1] of the agents together, the mean of R and, under `exact_sum`, what is left of R are shared
        out among the `alive` [n, N].
        """
        share = alive / alive.sum(1, keepdim=True)
        point = individual * self.scale.reward_std
        point = point + share * (constants * self.scale.reward_std + self.scale.reward_mean)
        if not self.config.exact_sum:
            return point
        team_reward = transitions.column("team_reward")[rows.to(transitions.device)].to(self.device)
        return point + share * (team_reward - point.sum(1))[:, None]

    def named(self, credit: Credit) -> Credit:
        """The answer with what was found about its variables, and which rows were held out."""
        credit.masks = self._on_all_inputs(self.mask)
        credit.edge_probability = self._on_all_inputs(self.edge_probability)
        credit.shared_parents = self._on_all_inputs(self.shared_parents)
        credit.input_names, credit.heldout_rows = self.layout.names, self.heldout_rows
        return credit

    def _on_all_inputs(self, of_varying: Tensor | None) -> Tensor | None:
        """An [N, V] or [V] array with zeros where a variable never varied: [N, all] or [all]."""
        if of_varying is None:
            return None
        full = torch.zeros(*of_varying.shape[:-1], len(self.layout.names), dtype=of_varying.dtype)
        full[..., self.scale.varying.cpu()] = of_varying.cpu()
        return full
