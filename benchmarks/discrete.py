"""How long one update of a learner of choices takes, sampling included, as ratios against peers on the same data.

    python benchmarks/discrete.py [--threads 1 2] [--rounds 15] [--json]

Battles: 5 agents of 11 choices, observations of 80, a state of 120, episodes of 60 steps, or of 20 to 60 in which half
of the agents die. QMIX-CQL on 32 whole episodes with 20 sampled joint choices stands against the loop that published
code runs: modules of PyTorch, the agents' network called once a step on a padded batch, the mixer once a joint choice.
CQL on 1,024 single steps stands against d3rlpy's. A ratio above 1 means that offmarl is faster. All sides take turns,
and medians are compared.
"""

import contextlib
import copy
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep, to everyone's advantage
sys.path.insert(0, str(Path(__file__).parent))  # for learners.py and report.py

import numpy as np
import torch
from learners import Update, in_turns
from report import Row, parser_of, print_rows, row_of_times
from torch import Tensor, nn
from torch.nn import functional as F

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.learners.registry import make_learner
from offmarl.streams import stream
from offmarl.training.loop import TrainConfig
from offmarl.training.memory import keep_freed_memory
from offmarl.training.precision import matmul_precision

N_AGENTS, OBS, STATE, CHOICES, SHORTEST, HORIZON, HIDDEN = 5, 80, 120, 11, 20, 60, 64
EMBEDDING, HYPERNET, SAMPLES, ALPHA, GAMMA, LEARNING_RATE = 32, 64, 20, 1.0, 0.99, 1e-3
EPISODES, STEPS = 32, 1_024  # of a batch


def battles(episodes: int, deadly: bool = False) -> Transitions:
    """Random numbers in the shape of battles of one length, or `deadly` ones; a third of the choices is illegal."""
    agents = tuple(f"agent_{i}" for i in range(N_AGENTS))
    spec = EnvSpec(
        id="benchmark",
        agents=agents,
        groups=(agents,),
        action_type="discrete",
        obs_names=(tuple(f"o{i}" for i in range(OBS)),) * N_AGENTS,
        action_names=(tuple(f"u{i}" for i in range(CHOICES)),) * N_AGENTS,
        state_names=tuple(f"s{i}" for i in range(STATE)),
        horizon=HORIZON,
    )
    generator = stream(0, "benchmark")
    length = torch.randint(SHORTEST if deadly else HORIZON, HORIZON + 1, (episodes,), generator=generator)
    start = F.pad((length + 1).cumsum(0), (1, 0))
    rows = int(start[-1])
    legal = torch.rand(rows, N_AGENTS, CHOICES, generator=generator) < 0.66
    legal[..., 0] = True
    truncated = torch.zeros(rows)
    truncated[start[1:] - 2] = 1
    arrays = {
        "obs": torch.randn(rows, N_AGENTS, OBS, generator=generator),
        "state": torch.randn(rows, STATE, generator=generator),
        "legal": legal.float(),
        "action": (torch.rand(rows, N_AGENTS, CHOICES, generator=generator) * legal).argmax(-1).float(),
        "team_reward": torch.randn(rows, generator=generator),
        "terminated": torch.zeros(rows),
        "truncated": truncated,
    }
    if deadly:  # half of the agents die, at any time; three quarters of all frames are of the living
        dies = (
            2 * torch.rand(episodes, N_AGENTS, generator=generator) * (length + 1).unsqueeze(1)
        ).long() + 1
        episode = torch.repeat_interleave(torch.arange(episodes), length + 1)
        time = torch.arange(rows) - start[episode]
        arrays["alive"] = (time.unsqueeze(1) < dies[episode]).float()
    return Transitions.from_arrays(spec, arrays, start)


# ---- ours


def ours(name: str, table: Transitions, batch_size: int, **settings: Any) -> Update:
    """One update of all agents by the learner `name`, on a batch drawn for it."""
    learner = make_learner(name, table.spec, settings)
    learner.observe(table.statistics())
    generators = [stream(0, "sample")]
    return lambda: learner.update(learner.sample(table, batch_size, generators))


# ---- QMIX-CQL as published code runs it


class PlainAgent(nn.Module):
    """A layer, a recurrent unit and a layer, called once a step for all agents of all episodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(OBS + N_AGENTS, HIDDEN)
        self.unit = nn.GRUCell(HIDDEN, HIDDEN)
        self.last = nn.Linear(HIDDEN, CHOICES)

    def forward(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.unit(F.relu(self.first(inputs)), memory)
        return self.last(memory), memory


class PlainMixer(nn.Module):
    """The monotonic mixer with its four hypernetworks."""

    def __init__(self) -> None:
        super().__init__()

        def two_layers(hidden: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Linear(STATE, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

        self.first, self.second = two_layers(HYPERNET, N_AGENTS * EMBEDDING), two_layers(HYPERNET, EMBEDDING)
        self.bias, self.value = nn.Linear(STATE, EMBEDDING), two_layers(EMBEDDING, 1)

    def forward(self, q: Tensor, state: Tensor) -> Tensor:
        """Agents' values [B, T, N], state [B, T, D] -> [B, T, 1]."""
        state, rows = state.reshape(-1, STATE), q.reshape(-1, 1, N_AGENTS)
        first = self.first(state).abs().view(-1, N_AGENTS, EMBEDDING)
        hidden = F.elu(torch.bmm(rows, first) + self.bias(state).view(-1, 1, EMBEDDING))
        second = self.second(state).abs().view(-1, EMBEDDING, 1)
        return (torch.bmm(hidden, second) + self.value(state).view(-1, 1, 1)).view(*q.shape[:2], 1)


def plain_qmix_cql(table: Transitions) -> Update:
    """One update: unroll both networks step by step, mix joint choice by joint choice, clip, copy."""
    agent, mixer = PlainAgent(), PlainMixer()
    target_agent, target_mixer = copy.deepcopy(agent), copy.deepcopy(mixer)
    parameters = [*agent.parameters(), *mixer.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    episodes = table.n_episodes
    start = table.episode_start
    length, time = start.diff() - 1, torch.arange(HORIZON + 1)
    padded = torch.minimum(start[:-1].unsqueeze(1) + time, start[1:].unsqueeze(1) - 1)
    buffer = {  # one array a field, episodes first, padded, as published buffers keep them
        name: table.column(name)[padded]
        for name in ("obs", "state", "legal", "action", "team_reward", "terminated")
    }
    buffer["filled"] = (time < length.unsqueeze(1)).float()
    identity = torch.eye(N_AGENTS).expand(EPISODES, N_AGENTS, N_AGENTS)
    updates = 0

    def unroll(network: PlainAgent, obs: Tensor) -> Tensor:
        memory, steps = torch.zeros(EPISODES * N_AGENTS, HIDDEN), []
        for t in range(obs.shape[1]):
            inputs = torch.cat([obs[:, t], identity], dim=2).view(EPISODES * N_AGENTS, -1)
            q, memory = network(inputs, memory)
            steps.append(q.view(EPISODES, N_AGENTS, CHOICES))
        return torch.stack(steps, dim=1)

    def update() -> None:
        nonlocal updates
        chosen = torch.from_numpy(np.random.choice(episodes, EPISODES, replace=False))
        steps = int(length[chosen].max())
        batch = {name: values[chosen, : steps + 1] for name, values in buffer.items()}
        action, state = batch["action"][:, :-1].long().unsqueeze(3), batch["state"]
        legal = batch["legal"]
        filled = batch["filled"][:, :-1].unsqueeze(2)
        q = unroll(agent, batch["obs"])
        with torch.no_grad():
            target_q = unroll(target_agent, batch["obs"])
            allowed = q.detach().clone()
            allowed[legal == 0] = -9_999_999
            best = allowed[:, 1:].argmax(3, keepdim=True)
            next_q = target_mixer(target_q[:, 1:].gather(3, best).squeeze(3), state[:, 1:])
            going_on = 1 - batch["terminated"][:, :-1].unsqueeze(2)
            target = batch["team_reward"][:, :-1].unsqueeze(2) + GAMMA * going_on * next_q
        q_data = mixer(q[:, :-1].gather(3, action).squeeze(3), state[:, :-1])
        td = (((q_data - target) * filled) ** 2).sum() / filled.sum()
        law = legal[:, :-1].reshape(-1, CHOICES)
        drawn = torch.multinomial(law, SAMPLES, replacement=True).view(EPISODES, steps, N_AGENTS, SAMPLES)
        rated = [
            mixer(q[:, :-1].gather(3, drawn[..., k : k + 1]).squeeze(3), state[:, :-1])
            for k in range(SAMPLES)
        ]
        soft_maximum = torch.logsumexp(torch.cat([*rated, q_data], dim=2), dim=2, keepdim=True)
        gap = ((soft_maximum - q_data) * filled).sum() / filled.sum()
        optimiser.zero_grad()
        (td + ALPHA * gap).backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimiser.step()
        updates += 1
        if updates % 200 == 0:
            target_agent.load_state_dict(agent.state_dict())
            target_mixer.load_state_dict(mixer.state_dict())

    return update


# ---- d3rlpy


def d3rlpy_cql(table: Transitions) -> Update:
    """One update of d3rlpy's discrete CQL for each agent, each on a batch of a buffer of its own."""
    import d3rlpy

    rows = table.transition_rows.numpy()
    sides = []
    for agent in range(N_AGENTS):
        buffer = d3rlpy.dataset.MDPDataset(
            observations=table.column("obs")[rows, agent].numpy(),
            actions=table.column("action")[rows, agent, None].numpy().astype(np.int64),
            rewards=table.column("reward")[rows, agent, None].numpy(),
            terminals=np.zeros(len(rows)),
            timeouts=table.column("truncated")[rows].numpy(),
            action_size=CHOICES,
            action_space=d3rlpy.ActionSpace.DISCRETE,
        )
        config = d3rlpy.algos.DiscreteCQLConfig(
            batch_size=STEPS,
            gamma=GAMMA,
            learning_rate=LEARNING_RATE,
            encoder_factory=d3rlpy.models.VectorEncoderFactory([HIDDEN, HIDDEN]),
        )
        algorithm = config.create(device=False)
        algorithm.build_with_dataset(buffer)
        sides.append((algorithm, buffer))

    def update() -> None:
        for algorithm, buffer in sides:
            algorithm.update(buffer.sample_transition_batch(STEPS))

    return update


# ---- measuring


def measure(table: Transitions, deadly: Transitions, threads: int, rounds: int) -> dict[str, Row]:
    """Rows of the table: offmarl against each peer, on episodes of one length and, where it matters, on deadly ones."""
    torch.set_num_threads(threads)
    usual: dict[str, Any] = {"hidden": (HIDDEN, HIDDEN), "gamma": GAMMA, "learning_rate": LEARNING_RATE}
    mixing = {"mixer_embedding": EMBEDDING, "hypernet_hidden": HYPERNET, "action_samples": SAMPLES}
    recurrent = {"trunk": "gru", "alpha": ALPHA, **mixing, **usual}
    compared: dict[str, dict[str, Update]] = {
        f"qmix_cql, {EPISODES} episodes of {kind}: against the plain loop": {
            "offmarl": ours("qmix_cql", data, EPISODES, **recurrent),
            "peer": plain_qmix_cql(data),
        }
        for kind, data in (
            (f"{HORIZON} steps", table),
            (f"{SHORTEST} to {HORIZON} steps with deaths", deadly),
        )
    }
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(sys.stderr):
        peer = d3rlpy_cql(table)
        for share in (False, True):
            networks = "one network for all" if share else "one network an agent"
            compared[f"cql, {STEPS:,} steps, {networks}: against d3rlpy's"] = {
                "offmarl": ours("cql", table, STEPS, trunk="mlp", share=share, agent_id=share, **usual),
                "peer": peer,
            }
    rows: dict[str, Row] = {}
    for name, sides in compared.items():
        taken = in_turns(sides, rounds)
        rows[f"{name}, {threads} threads"] = row_of_times(taken["offmarl"], taken["peer"], "ms")
    return rows


def main() -> None:
    """Print the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--matmul-precision", default=TrainConfig.matmul_precision, help="for all sides")
    arguments = parser.parse_args()
    keep_freed_memory()
    table, deadly = battles(arguments.episodes), battles(arguments.episodes, deadly=True)
    rows: dict[str, Row] = {}
    with matmul_precision(arguments.matmul_precision, torch.device("cpu")):
        for threads in arguments.threads:
            rows |= measure(table, deadly, threads, arguments.rounds)
    print_rows(rows, arguments.json, need_d3rlpy=True)


if __name__ == "__main__":
    main()
