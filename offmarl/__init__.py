"""Offline multi-agent reinforcement learning that says who earned the team's reward."""

__version__ = "0.1.0"
