"""What learners share that clone the continuous actions of the data by weight: ICQ and IQL.

A Gaussian policy is regressed on the data's actions, a critic rates them, and a value says what they are worth on
average, in whichever sense.

Shapes: S seeds, B batch, N agents, O observation, A action dimensions.
"""

from collections.abc import Sequence
from math import log, pi

import torch
from torch import Tensor

from offmarl.data.table import Batch
from offmarl.envs.base import EnvSpec
from offmarl.learners.base import Metrics, ObservingLearner, ValueConfig
from offmarl.learners.networks import Pass, StackedMLP
from offmarl.learners.optimiser import StackedAdam
from offmarl.learners.rewards import Rewards

# Log of a policy's standard deviation, which cloning an exact rule would let vanish.
NARROWEST, WIDEST = -5.0, 2.0


class WeightedCloning(ObservingLearner):
    """A Gaussian policy with mean tanh(z(o_i)), a critic Q(o_i, a_i) with its target and a value V(o_i) for each agent.

    There is one critic: what the minimum of two cures, the overestimation of actions that nobody took, cannot arise.
    """

    action_type = "continuous"
    config: ValueConfig

    def __init__(
        self, spec: EnvSpec, config: ValueConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(spec, config, seeds, device)
        self.config = config
        A = spec.action_dim
        self.rewards = self.keep("normaliser", Rewards(config, spec.n_agents, self.device))
        self.policy = self.network("policy", self.input_dim, A)
        deviations = torch.zeros(len(self.policy.flat), A, device=self.device)
        # The same in all states: a layer without inputs.
        self.log_sd = self.keep("log_sd", StackedMLP(self.policy.copies, (0, A), deviations))
        self.critic = self.network("critic", self.input_dim + A, 1)
        self.target_critic = self.keep("target_critic", self.critic.target())
        self.value = self.network("value", self.input_dim, 1)
        self.policy_optimiser = self._optimiser("policy", self.policy)
        self.log_sd_optimiser = self._optimiser("log_sd", self.log_sd)
        self.critic_optimiser = self._optimiser("critic", self.critic)
        self.value_optimiser = self._optimiser("value", self.value)
        widths = torch.tensor([len(names) for names in spec.action_names], device=self.device)
        used = torch.arange(A, device=self.device) < widths.unsqueeze(1)
        self._used = used.float().unsqueeze(1)  # [N, 1, A], 0 in dimensions that narrower agents lack

    def _optimiser(self, name: str, network: StackedMLP) -> StackedAdam:
        made = StackedAdam(network, self.config.learning_rate, self.config.gradient_clip)
        return self.keep(f"{name}_optimiser", made)

    # ---- losses and their pieces

    @staticmethod
    def squared_error(value: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Mean squared error over the counted rows: [S, N or 1, B] each -> [S, N or 1]."""
        return ((value - target).square() * counted).sum(-1) / counted.sum(-1).clamp(min=1)

    def policy_loss(self, mean: Tensor, action: Tensor, rho: Tensor) -> Tensor:
        """-ρ log π(a | o) of a Gaussian: means, actions [S, N, B, A] and ρ [S, N, B] -> [S, N]."""
        log_sd = self.log_deviations()
        terms = 0.5 * ((action - mean) / log_sd.exp()).square() + log_sd + 0.5 * log(2 * pi)
        return (rho * (terms * self._used).sum(3)).mean(2)

    def log_deviations(self) -> Tensor:
        """Log of the policies' standard deviations, [S, N or 1, 1, A]."""
        return self.log_sd.biases[0].unflatten(0, self.log_sd.copies)

    def q_values(self, critic: StackedMLP, obs: Tensor, action: Tensor) -> Tensor:
        """Q_i of one action a state: [S, N, B, O], [S, N, B, A] -> [S, N, B]."""
        return critic.outputs(self.rows(obs), self.rows(action).unsqueeze(2)).view(obs.shape[:3])

    @staticmethod
    def spread(advantage: Tensor, counted: Tensor) -> Tensor:
        """Standard deviation over the counted rows: [S, N, B] each -> [S, N, 1]."""
        count = counted.sum(2, keepdim=True).clamp(min=1)
        mean = (advantage * counted).sum(2, keepdim=True) / count
        variance = ((advantage - mean).square() * counted).sum(2, keepdim=True) / count
        return variance.sqrt().clamp(min=1e-6)

    @staticmethod
    def living(batch: Batch) -> Tensor:
        """Whose actions count, [S, N, B] bool."""
        everyone = torch.ones_like(batch.reward, dtype=torch.bool)
        return (everyone if batch.alive is None else batch.alive).transpose(1, 2)

    # ---- steps

    def descend(self, forward: Pass, gradient: Tensor, optimiser: StackedAdam) -> Tensor:
        """One step of networks with one output, whose loss has this gradient by it [S, N, B]. Returns norms [G]."""
        if self.share:
            gradient = gradient / gradient.shape[1]  # as in `Learner.total`
        forward.backward(self.rows(gradient).view_as(forward.output), optimiser.gradient)
        return optimiser.step()

    @torch.no_grad()
    def policy_step(self, obs: Tensor, action: Tensor, rho: Tensor) -> Metrics:
        """One step of the policies down `policy_loss`."""
        S, N, B, A = action.shape
        rows = self.rows(obs)
        policy = self.policy.forward(rows)
        mean = torch.tanh(policy.output.view(S, N, B, A)) * self._used
        loss, sd = self.policy_loss(mean, action, rho), self.log_deviations().exp()
        error = (mean - action) / sd
        each = rho.unsqueeze(3) * self._used / rows.shape[1]
        to_log_sd = self.rows(each * (1 - error.square()))  # [G, M, A]
        policy.backward(self.rows(each * error / sd * (1 - mean.square())), self.policy_optimiser.gradient)
        norm = self.policy_optimiser.step()
        self.log_sd_optimiser.gradient.biases[0].add_(to_log_sd.sum(1, keepdim=True))
        self.log_sd_optimiser.step()
        self.log_sd.flat.clamp_(NARROWEST, WIDEST)
        return {
            "policy_loss": loss.mean(1),
            "policy_gradient": norm.view(S, -1).mean(1),
            "policy_sd": sd.mean((1, 2, 3)),
            "saturation": (mean.abs() > 0.99).float().mean((1, 2, 3)),
            # Kish's effective sample size: at 1 this is cloning, near 0 a few actions are all that counts.
            "effective_batch": (rho.sum(2).square() / (B * rho.square().sum(2)).clamp(min=1e-9)).mean(1),
        }

    @torch.no_grad()
    def act(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """Act as the policy does on average: [S, B, N, O] -> [S, B, N, A]."""
        z = self.apply(self.policy, self.prepare(obs))
        return (torch.tanh(z) * self._used).transpose(1, 2)
