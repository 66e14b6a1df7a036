"""Behaviour cloning of units: imitate what each did, given its view and the plain average of what neighbours did.

Shapes: S seeds, B units of a batch, K choices.
"""

from dataclasses import dataclass

import torch

from offmarl.learners.base import Metrics
from offmarl.learners.meanfield.base import Experience, MeanFieldConfig, MeanFieldLearner


@dataclass
class UnitBCConfig(MeanFieldConfig):
    """Behaviour cloning has no settings of its own."""


class UnitBC(MeanFieldLearner):
    """π(a | s, ā) by maximum likelihood: what behaviour policies of this family may depend on, it can imitate."""

    config_class = UnitBCConfig
    network_name = "policy"

    def learn(self, kind: str, experience: Experience) -> Metrics:
        """One step down -log π of the recorded choices."""
        logits = self.outputs(self.actors[kind], experience.now)
        likelihood = torch.log_softmax(logits, dim=2).gather(2, experience.action.unsqueeze(2))
        loss = -likelihood.squeeze(2).mean(1)  # [S]
        norm = self.optimisers[kind].minimise(loss.sum())
        agrees = logits.detach().argmax(2) == experience.action
        return {"policy_loss": loss.detach(), "policy_gradient": norm, "agreement": agrees.float().mean(1)}
