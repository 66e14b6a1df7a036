"""Decompositions that anything better has to beat."""

from offmarl.credit.base import AgentVerdict, Credit, Decomposer, equal_split
from offmarl.credit.diagnosis import EQUAL_SPLIT
from offmarl.data.table import Transitions


class EqualSplit(Decomposer):
    """Every agent gets R/N; exact where agents are paid the same, and never harmful."""

    def fit(self, transitions: Transitions) -> None:
        """Nothing is learned."""

    def assign(self, transitions: Transitions) -> Credit:
        """R/N for everyone."""
        agents = [AgentVerdict(name, EQUAL_SPLIT) for name in self.spec.agents]
        return Credit(equal_split(transitions), agents=agents)
