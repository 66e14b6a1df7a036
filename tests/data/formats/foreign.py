"""Datasets as other people's programs write them, small and with known contents."""

from pathlib import Path

import h5py
import numpy as np

from offmarl.data.store import Dataset
from offmarl.data.writer import Writer
from offmarl.envs.base import EnvSpec

RNG = np.random.default_rng


def write_ours(
    folder: Path,
    discrete: bool,
    steps: tuple[int, ...] = (3, 1, 7, 7, 2),
    agents: tuple[str, ...] = ("agent_10", "agent_2", "scout"),
) -> Dataset:
    """A dataset with agents of different widths; the discrete one has a state, legal actions and deaths."""
    rng = RNG(int(discrete))
    widths, actions = (5, 3, 4), ((2, 4, 3) if discrete else (2, 1, 2))
    spec = EnvSpec(
        id="mixed",
        agents=agents,
        groups=tuple((agent,) for agent in agents),
        action_type="discrete" if discrete else "continuous",
        obs_names=tuple(tuple(f"x{i}" for i in range(width)) for width in widths),
        action_names=tuple(tuple(f"u{i}" for i in range(width)) for width in actions),
        state_names=("p", "q", "r") if discrete else (),
        horizon=9,
        has_agent_reward=discrete,
    )
    length = np.array(steps) + 1
    rows = int(length.sum())
    acting = np.ones(rows, dtype=bool)
    acting[np.cumsum(length) - 1] = False
    obs = rng.standard_normal((rows, 3, 5)).astype(np.float32)
    for agent, width in enumerate(widths):
        obs[:, agent, width:] = 0
    ends = np.zeros((2, rows), dtype=np.uint8)
    last = np.cumsum(length) - 2
    ends[np.arange(len(steps)) % 2, last] = 1
    ends[:, last[-1]] = 1  # over, and out of time at once
    arrays = {"obs": obs, "terminated": ends[0], "truncated": ends[1]}
    if discrete:
        legal = np.zeros((rows, 3, 4), dtype=np.uint8)
        for agent, width in enumerate(actions):
            legal[:, agent, :width] = rng.random((rows, width)) < 0.5
            legal[:, agent, rng.integers(width)] = 1
        action = np.where(acting[:, None], legal.argmax(axis=2), 0)
        agent_reward = np.where(acting[:, None], rng.standard_normal((rows, 3)), 0).astype(np.float32)
        arrays |= {
            "state": rng.standard_normal((rows, 3)),
            "legal": legal,
            "action": action,
            "alive": rng.random((rows, 3)) < 0.8,
            "agent_reward": agent_reward,
            "team_reward": agent_reward.sum(axis=1, dtype=np.float64),
        }
    else:
        action = np.where(acting[:, None, None], rng.uniform(-1, 1, (rows, 3, 2)), 0)
        action[:, 1, 1] = 0
        arrays |= {"action": action, "team_reward": np.where(acting, rng.standard_normal(rows), 0)}
    facts = {"rider": rng.integers(3, size=len(steps)), "who": rng.random((len(steps), 3)) < 0.5}
    with Writer(folder, spec, id="mixed/own-v0", references={"random": 0.5, "expert": 2.0}) as writer:
        writer.append(arrays, length, facts)
    return Dataset.open(folder)


def write_omar(
    folder: Path,
    rows: int = 75,
    horizon: int = 25,
    widths: tuple[int, ...] = (18, 18, 18),
    shared: bool = False,
    done: bool = False,
) -> dict[str, np.ndarray]:
    """An OMAR folder, whose `dones` are zero; what is in it, by the names of the files."""
    rng = RNG(7)
    folder.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    common = rng.standard_normal(rows)
    for agent, width in enumerate(widths):
        frames = rng.standard_normal((rows + rows // horizon + 2, width))
        at = np.arange(rows) + np.arange(rows) // horizon  # a final observation after each episode
        arrays[f"obs_{agent}"] = frames[at]
        arrays[f"next_obs_{agent}"] = frames[at + 1]
        arrays[f"acs_{agent}"] = rng.uniform(-1, 1, (rows, 2))
        arrays[f"rews_{agent}"] = common if shared else rng.standard_normal(rows)
        arrays[f"dones_{agent}"] = np.zeros(rows)
        if done:
            arrays[f"dones_{agent}"][horizon - 1 :: horizon] = 1
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return arrays


def write_pymarl(
    path: Path, variant: str = "cfcql", steps: tuple[int, ...] = (4, 6, 2), won: tuple[int, ...] = (1, 0, 1)
) -> dict[str, np.ndarray]:
    """A PyMARL file of 2 agents with 3 choices, observations of 5 and a state of 4; time limit 6."""
    rng = RNG(3)
    episodes, time, n_agents, choices = len(steps), 7, 2, 3
    filled = np.arange(time) <= np.array(steps)[:, None]
    legal = rng.random((episodes, time, n_agents, choices)) < 0.6
    legal[..., 1] = True
    actions = np.where(rng.random(legal.shape) * legal > 0, rng.random(legal.shape) * legal, 0).argmax(-1)
    terminated = np.zeros((episodes, time, 1), dtype=np.uint8)
    terminated[np.arange(episodes), np.array(steps) - 1, 0] = won
    arrays = {
        "state": rng.standard_normal((episodes, time, 4)).astype(np.float32),
        "obs": rng.standard_normal((episodes, time, n_agents, 5)).astype(np.float32),
        "actions": actions[..., None].astype(np.int64),
        "avail_actions": legal.astype(np.int32),
        "reward": rng.standard_normal((episodes, time, 1)).astype(np.float32),
        "terminated": terminated,
        "filled": filled[..., None].astype(np.int64),
    }
    if variant == "cfcql":
        arrays["probs"] = np.full(legal.shape, 1 / 3, dtype=np.float32)
    if variant == "icq":
        arrays["actions_onehot"] = np.eye(choices, dtype=np.float32)[actions]
    for name, values in arrays.items():
        if name != "filled":
            values[~filled] = 0
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
    return arrays


def vault_experience(steps: tuple[int, ...] = (4, 2, 3), n_agents: int = 3) -> dict:
    """What OG-MARL puts into a vault, [1, T, ...]: the last agent's observation is narrower."""
    rng = RNG(5)
    time = sum(steps)
    ends = np.zeros((time, n_agents), dtype=np.float32)
    ends[np.cumsum(steps) - 1] = 1
    out = np.zeros_like(ends)
    out[steps[0] - 1], ends[steps[0] - 1] = 1, 0  # the first episode runs out of time
    obs = rng.standard_normal((time, n_agents, 4)).astype(np.float32)
    obs[:, -1, 3] = -np.inf
    legal = np.ones((time, n_agents, 3), dtype=np.float32)
    legal[:, :, 2] = 0
    team = rng.standard_normal((time, 1)).astype(np.float32)
    return {
        "observations": obs[None],
        "actions": rng.integers(2, size=(1, time, n_agents)).astype(np.int32),
        "rewards": np.repeat(team, n_agents, axis=1)[None],
        "terminals": ends[None],
        "truncations": out[None],
        "infos": {"state": rng.standard_normal((1, time, 6)).astype(np.float32), "legals": legal[None]},
    }


def write_vault(folder: Path, experience: dict) -> Path:
    """Write a vault with flashbax itself; the folder of its uid."""
    import jax.numpy as jnp
    from flashbax.buffers.trajectory_buffer import TrajectoryBufferState
    from flashbax.vault import Vault
    from jax import tree

    experience = tree.map(jnp.asarray, experience)
    time = experience["observations"].shape[1]
    state = TrajectoryBufferState(
        experience=experience, current_index=jnp.asarray(time), is_full=jnp.asarray(False)
    )
    vault = Vault("task.vlt", experience, rel_dir=str(folder), vault_uid="Good")
    # A buffer that is exactly full would look empty: written in two intervals, the way flashbax does.
    vault.write(state, source_interval=(0, time))
    return folder / "task.vlt" / "Good"
