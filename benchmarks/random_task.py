"""A task in the shape of the particle worlds, for tables of random numbers."""

from offmarl.envs.base import EnvSpec

N_AGENTS, ACTION, HORIZON = 3, 2, 25


def random_task(observations: int) -> EnvSpec:
    """Three agents with two continuous actions each, and episodes of 25 steps."""
    agents = tuple(f"agent_{i}" for i in range(N_AGENTS))
    return EnvSpec(
        id="benchmark",
        agents=agents,
        groups=(agents,),
        action_type="continuous",
        obs_names=(tuple(f"o{i}" for i in range(observations)),) * N_AGENTS,
        action_names=(tuple(f"u{i}" for i in range(ACTION)),) * N_AGENTS,
        horizon=HORIZON,
    )
