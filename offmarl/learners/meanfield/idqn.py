"""Independent Q-learning (Tampuu et al. 2017): the paper's IQL, which knows nothing of what others do."""

from offmarl.learners.meanfield.q_learning import MeanFieldQ


class IDQN(MeanFieldQ):
    """Q(s, a): each unit by what it sees alone."""

    looks_around = False
