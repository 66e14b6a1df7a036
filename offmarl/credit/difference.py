"""Difference rewards: an agent earns what the team would have lost had it acted as it does on average.

    D_i = R - f(s, a with a_i replaced by its behaviour-average given o_i)

f is a model of E[R | s, a]. The behaviour-average of a continuous action is its mean given the agent's
observation; of a discrete action f is averaged over the choices with their probabilities (the aristocrat
utility). The effect of the situation itself is nobody's doing here, so that D is no estimate of individual
rewards that pay for situations; what is left of R after Σ_i D_i is shared out equally.

Sources: Wolpert & Tumer 2002, "Optimal payoff functions for members of collectives" (wonderful life and
aristocrat utility); Foerster et al. 2018 (COMA) for the average over the policy.

Shapes: n transitions, N agents, O observation, A action dimensions or choices, V variables, H hidden units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from offmarl.credit.heads import minimise
from offmarl.credit.regression import Regression, perceptron
from offmarl.credit.samples import Samples
from offmarl.credit.team_model import TeamModelConfig, TeamRewardModel
from offmarl.data.table import Transitions
from offmarl.settings import Count, Positive
from offmarl.streams import stream


@dataclass
class DifferenceConfig(TeamModelConfig):
    """The model of the team's reward, and that of how the agents behaved.

    The behaviour's network and rates are those of behaviour cloning in this project, in fewer steps; not tuned.
    """

    next_state: bool = (
        False  # the model sees s' too: what an action leads to is then kept when it is replaced
    )
    behaviour_width: Count = 64  # hidden units, two layers, shared by the agents with a one-hot name each
    behaviour_steps: Count = 1_500
    behaviour_learning_rate: Positive = 1e-3


class Difference(Regression):
    """Team reward minus the prediction with the agent's action replaced; see the module's docstring."""

    config_class = DifferenceConfig
    reads_obs = True  # which the behaviour depends on
    config: DifferenceConfig
    model: TeamRewardModel
    behaviour: "Behaviour"
    action_weight: Tensor  # [N, A, H] what a unit of each action brings to the model's first layer

    def regress(self, samples: Samples, transitions: Transitions) -> None:
        """Fit the model of the team's reward, then the agents' behaviour."""
        varying = samples.scale.varying.cpu()
        action, successor = self.layout.kinds()
        visible = torch.ones_like(successor) if self.config.next_state else ~successor
        self.model = TeamRewardModel(
            samples, visible[varying].to(self.device), self.config, self.seed, self.report
        )
        weight = torch.zeros(len(action), self.config.width, device=self.device)  # of raw variables
        weight[varying.to(self.device)] = self.model.first_weight / samples.scale.input_std[:, None]
        widths = [len(names) for names in self.spec.action_names]
        per_agent = weight[action.to(self.device)].split(widths)  # [own A, H] each
        self.action_weight = nn.utils.rnn.pad_sequence(list(per_agent), batch_first=True)
        self.behaviour = Behaviour(self, transitions, samples.rows)

    @torch.no_grad()
    def individual(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """D_i, [n, N]."""
        entering = self.model.first_layer(self.scale.inputs(transitions, rows)).unsqueeze(1)  # [n, 1, H]
        action, average = actions(transitions, rows).to(self.device), self.behaviour(transitions, rows)
        without = entering - torch.einsum("nia,iah->nih", action, self.action_weight)  # [n, N, H]
        if self.spec.discrete:
            expected = torch.zeros_like(without[..., 0])
            for choice in range(self.spec.action_dim):
                value = self.model.after_first_layer(without + self.action_weight[:, choice])
                expected += average[:, :, choice] * value
        else:
            instead = torch.einsum("nia,iah->nih", average, self.action_weight)
            expected = self.model.after_first_layer(without + instead)  # [n, N]
        return self.scale.team_reward(transitions, rows)[:, None] - expected

    @torch.no_grad()
    def prediction(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """What the model expects of the actions that were taken, [n]."""
        return self.model(self.scale.inputs(transitions, rows))


class Behaviour:
    """What the agents do on average, given what they observe: mean actions, or probabilities of the choices."""

    def __init__(self, of: Difference, transitions: Transitions, rows: Tensor) -> None:
        """Fit the actions in `rows` [n]: least squares, or maximum likelihood among the legal choices."""
        spec, config, device = of.spec, of.config, of.device
        self.spec, self.device = spec, device
        obs = transitions.column("obs")[rows.to(transitions.device)].to(device)  # [n, N, O]
        self.mean, std = obs.mean(0), obs.std(0)
        self.std = torch.where(std > 1e-6, std, 1.0)
        self.name = torch.eye(spec.n_agents, device=device)
        width = config.behaviour_width
        sizes = [spec.obs_dim + spec.n_agents, width, width, spec.action_dim]
        self.network = perceptron(sizes, stream(of.seed, "behaviour", "init"), device)
        generator = stream(of.seed, "behaviour", "batches")

        def loss(step: int) -> Tensor:
            of.report("behaviour", step + 1, config.behaviour_steps)
            batch = rows[torch.randint(len(rows), (config.batch_size,), generator=generator)]
            predicted, action = self.scores(transitions, batch), actions(transitions, batch).to(device)
            if spec.discrete:
                return functional.cross_entropy(predicted.flatten(0, 1), action.flatten(0, 1))
            return (predicted - action).square().mean()

        rates = [(list(self.network.parameters()), config.behaviour_learning_rate)]
        minimise(loss, rates, range(config.behaviour_steps), config.behaviour_steps, config.warm_up)

    def __call__(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Mean action, or probability of each choice: [n, N, A]."""
        scores = self.scores(transitions, rows)
        return scores.softmax(2) if self.spec.discrete else scores

    def scores(self, transitions: Transitions, rows: Tensor) -> Tensor:
        """Mean action, or score of each choice (those that cannot be made are very low): [n, N, A]."""
        rows = rows.to(transitions.device)
        obs = (transitions.column("obs")[rows].to(self.device) - self.mean) / self.std
        name = self.name.expand(len(rows), -1, -1)
        scores: Tensor = self.network(torch.cat([obs, name], 2))
        if not self.spec.discrete:
            return scores
        widths = torch.tensor([len(names) for names in self.spec.action_names], device=self.device)
        possible = torch.arange(self.spec.action_dim, device=self.device) < widths[:, None]  # [N, A]
        if "legal" in transitions.columns:
            possible = possible & transitions.column("legal")[rows].bool().to(self.device)
        return scores.masked_fill(~possible, -1e9)


def actions(transitions: Transitions, rows: Tensor) -> Tensor:
    """Actions [n, N, A], choices as one-hot."""
    action = transitions.column("action")[rows.to(transitions.device)]
    return (
        functional.one_hot(action.long(), transitions.spec.action_dim).float()
        if transitions.spec.discrete
        else action
    )
