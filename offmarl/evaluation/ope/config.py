"""Settings of off-policy evaluation."""

from dataclasses import dataclass

from offmarl.settings import Count, Fraction, Hidden, NonNegative, Positive, UpToOne


@dataclass(frozen=True)
class OpeConfig:
    """Settings of all estimators; what is estimated is always the undiscounted return unless `gamma` is lowered."""

    # ---- fitted Q evaluation
    steps: Count = 2_000  # gradient steps
    batch_size: Count = 256  # transitions, the same ones for every policy
    hidden: Hidden = (64, 64)
    learning_rate: Positive = 1e-3
    # Share of the way that the target network moves at a step. Q must travel through an episode within `steps`: on
    # free riders (8 agents, 25 steps, 2,000 updates) the data's own policy, which earned 116, is given 125 at 0.02.
    tau: Fraction = 0.1
    # 1: the return of an episode that ends as the data's do, which needs no conversion. Below 1 rewards are
    # discounted, and the estimate is one of the discounted return.
    gamma: Fraction = 1.0
    held_out: UpToOne = 0.1  # share of the episodes kept from the fit, on which it is checked
    # ---- importance sampling
    # Share of uniform legal choices that evaluated policies are thought to make: greedy policies, taken as they are,
    # leave no weight to any episode in which an agent once explored.
    smoothing: UpToOne = 0.05
    clone_steps: Count = 1_000  # updates of the clone that stands in for an unknown behaviour
    least_probability: NonNegative = 1e-3  # that the clone is thought to give to what the data did
