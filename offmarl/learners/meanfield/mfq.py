"""Mean-field Q-learning (Yang et al. 2018): Q(s, a, ā) with ā the plain average of what neighbours did last."""

from offmarl.learners.meanfield.q_learning import MeanFieldQ


class MFQ(MeanFieldQ):
    """Every neighbour counts the same, ā = 1/N Σ_k a_k (eq. 3): the family's own average."""
