"""How long one joint update of all agents takes, sampling included, as ratios against peers on the same data.

    python benchmarks/learners.py [--threads 1 2] [--rounds 15] [--transitions 1000000] [--json]

The papers' setting: 3 agents, observations of 22, actions of 2, two hidden layers of 64, batches of 1,024, 10
sampled actions a state; and a wide one with two layers of 256 and batches of 256. A ratio above 1 means that
offmarl is faster. All sides take turns, and medians are compared. They multiply matrices with the same precision flag,
but for "as it comes": without any.
"""

import contextlib
import copy
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep, to everyone's advantage

import numpy as np
import torch
from d3rlpy_buffers import d3rlpy_buffers
from random_task import ACTION, HORIZON, N_AGENTS, random_task
from report import Row, parser_of, print_rows, row_of_times
from torch import Tensor, nn
from torch.nn import functional as F

from offmarl.data.table import Transitions
from offmarl.learners.registry import make_learner
from offmarl.native.library import kernels
from offmarl.streams import stream
from offmarl.training.loop import TrainConfig
from offmarl.training.memory import keep_freed_memory
from offmarl.training.precision import matmul_precision

OBS, SAMPLES, ALPHA, GAMMA, TAU = 22, 10, 5.0, 0.95, 0.01
SEARCH_ROUNDS, COEFFICIENT = 3, 0.9  # OMAR
SMALL_BUFFER_EPISODES = 4_000  # of d3rlpy's buffers: a small one is to its advantage

Update = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Sizes that speed depends on."""

    name: str
    hidden: tuple[int, ...]
    batch_size: int


SETTINGS = (Setting("64x64, batch 1,024", (64, 64), 1024), Setting("256x256, batch 256", (256, 256), 256))


def random_transitions(count: int) -> Transitions:
    """Random numbers in the shape of a particle task, episodes of 25 steps that end by the time limit."""
    spec = random_task(OBS)
    episodes = -(-count // HORIZON)
    rows = episodes * (HORIZON + 1)
    generator = stream(0, "benchmark")
    truncated = torch.zeros(episodes, HORIZON + 1)
    truncated[:, -2] = 1
    arrays = {
        "obs": torch.randn(rows, N_AGENTS, OBS, generator=generator),
        "action": torch.rand(rows, N_AGENTS, ACTION, generator=generator) * 2 - 1,
        "reward": torch.randn(rows, N_AGENTS, generator=generator),
        "team_reward": torch.zeros(rows),
        "terminated": torch.zeros(rows),
        "truncated": truncated.flatten(),
    }
    return Transitions.from_arrays(spec, arrays, torch.arange(0, rows + 1, HORIZON + 1))


# ---- ours


def ours(name: str, table: Transitions, setting: Setting) -> Update:
    """One update of all agents by the learner `name`, on a batch drawn for it."""
    values: dict[str, Any] = {"hidden": setting.hidden, "share": False}
    name, _, critic = name.partition(", ")
    if name in ("cql", "omar"):
        values |= {"action_samples": SAMPLES, "alpha": ALPHA}
    if critic:
        values["critic"] = critic.removesuffix(" critic")
    learner = make_learner(name, table.spec, values)
    learner.observe(table.statistics())
    generators = [stream(0, "sample")]
    return lambda: learner.update(table.sample(setting.batch_size, generators))


# ---- the plain loop: one module a network, one agent after another, as published code does it


def plain_network(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class PlainBC:
    """Behaviour cloning of one agent."""

    def __init__(self, hidden: Sequence[int]) -> None:
        self.policy = plain_network(OBS, hidden, ACTION)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=3e-3)

    def update(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor, done: Tensor) -> None:
        loss = F.mse_loss(torch.tanh(self.policy(obs)), action)
        self.descend(self.optimiser, self.policy, loss)

    def descend(self, optimiser: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimiser.step()


class PlainTD3BC(PlainBC):
    """TD3+BC of one agent: twin critics, target networks, a policy update each time.

    Critics see `self.seen` and an action: the agent's observation, or everyone's and the others' actions.
    """

    seen_dim = OBS

    def __init__(self, hidden: Sequence[int]) -> None:
        super().__init__(hidden)
        self.critics = nn.ModuleList([plain_network(self.seen_dim + ACTION, hidden, 1) for _ in range(2)])
        self.critic_optimiser = torch.optim.Adam(self.critics.parameters(), lr=3e-3)
        self.target_policy, self.target_critics = copy.deepcopy(self.policy), copy.deepcopy(self.critics)

    def update(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        done: Tensor,
        others: Tensor | None = None,
        next_others: Tensor | None = None,
    ) -> None:
        self.seen = obs if others is None else torch.cat([obs, others], dim=1)
        with torch.no_grad():
            next_seen = next_obs if next_others is None else torch.cat([next_obs, next_others], dim=1)
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (torch.tanh(self.target_policy(next_obs)) + noise).clamp(-1, 1)
            joined = torch.cat([next_seen, next_action], dim=1)
            next_q = torch.min(*(critic(joined) for critic in self.target_critics))
            target = reward + GAMMA * (1 - done) * next_q
        loss = sum(self.critic_loss(critic, self.seen, action, target) for critic in self.critics)
        self.descend(self.critic_optimiser, self.critics, loss)
        self.descend(self.optimiser, self.policy, self.policy_loss(obs, action))
        for network, followed in ((self.target_policy, self.policy), (self.target_critics, self.critics)):
            for parameter, source in zip(network.parameters(), followed.parameters(), strict=True):
                parameter.data.copy_(parameter.data * (1 - TAU) + source.data * TAU)

    def critic_loss(self, critic: nn.Module, seen: Tensor, action: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(critic(torch.cat([seen, action], dim=1)), target)

    def policy_loss(self, obs: Tensor, action: Tensor) -> Tensor:
        policy_action = torch.tanh(self.policy(obs))
        q = self.critics[0](torch.cat([self.seen, policy_action], dim=1))
        return -q.mean() / q.detach().abs().mean() + 5.0 * F.mse_loss(policy_action, action)


class PlainCQL(PlainTD3BC):
    """CQL of one agent: log-sum-exp over uniform actions."""

    def critic_loss(self, critic: nn.Module, seen: Tensor, action: Tensor, target: Tensor) -> Tensor:
        q = critic(torch.cat([seen, action], dim=1))
        sampled = torch.empty(len(seen), SAMPLES, ACTION).uniform_(-1, 1)
        q_sampled = self.q_of_samples(critic, seen, sampled)
        soft_maximum = torch.logsumexp(q_sampled - np.log(0.5**ACTION), dim=1)
        return F.mse_loss(q, target) + ALPHA * (soft_maximum.mean() - q.mean())

    def policy_loss(self, obs: Tensor, action: Tensor) -> Tensor:
        policy_action = torch.tanh(self.policy(obs))
        q = self.critics[0](torch.cat([self.seen, policy_action], dim=1))
        return -q.mean() + 1e-3 * policy_action.square().mean()

    def q_of_samples(self, critic: nn.Module, seen: Tensor, sampled: Tensor) -> Tensor:
        rows = len(seen) * SAMPLES
        repeated = seen.unsqueeze(1).repeat(1, SAMPLES, 1).view(rows, -1)
        q: Tensor = critic(torch.cat([repeated, sampled.view(rows, ACTION)], dim=1))
        return q.view(len(seen), SAMPLES)


class PlainOMAR(PlainCQL):
    """OMAR of one agent: CQL's critic, and a policy pulled to the best action of three rounds of sampling."""

    def policy_loss(self, obs: Tensor, action: Tensor) -> Tensor:
        policy_action = torch.tanh(self.policy(obs))
        q = self.critics[0](torch.cat([self.seen, policy_action], dim=1))
        with torch.no_grad():
            mean, sd = torch.zeros(len(obs), 1, ACTION), torch.full((len(obs), 1, ACTION), 2.0)
            for _ in range(SEARCH_ROUNDS):
                law = torch.distributions.Normal(mean.expand(-1, SAMPLES, -1), sd.expand(-1, SAMPLES, -1))
                sampled = law.sample().clamp(-1, 1)
                q_sampled = self.q_of_samples(self.critics[0], self.seen, sampled)
                weight = torch.softmax(q_sampled, dim=1).unsqueeze(2)
                mean = (weight * sampled).sum(1, keepdim=True)
                sd = (weight * (sampled - mean) ** 2).sum(1, keepdim=True).sqrt() + 1e-5
            candidates = torch.cat([sampled, policy_action.unsqueeze(1)], dim=1)
            best = torch.cat([q_sampled, q], dim=1).argmax(1).view(-1, 1, 1).expand(-1, 1, ACTION)
            found = candidates.gather(1, best).squeeze(1)
        rectifying = F.mse_loss(policy_action, found)
        return -(1 - COEFFICIENT) * q.mean() + COEFFICIENT * rectifying + 1e-3 * policy_action.square().mean()


class PlainJointCQL(PlainCQL):
    """CQL with a critic of everyone's observations and actions."""

    seen_dim = N_AGENTS * OBS + (N_AGENTS - 1) * ACTION


PLAIN: dict[str, type[PlainBC]] = {
    "bc": PlainBC,
    "td3bc": PlainTD3BC,
    "cql": PlainCQL,
    "omar": PlainOMAR,
    "cql, joint critic": PlainJointCQL,
}


def plain(name: str, table: Transitions, setting: Setting) -> Update:
    """One update of each agent in turn, each on a batch drawn by `np.random.choice` without replacement."""
    rows = table.transition_rows.numpy()
    obs, action, reward = (table.column(column).numpy() for column in ("obs", "action", "reward"))
    terminated = table.column("terminated").numpy()
    buffers = [  # separate arrays an agent, as published buffers keep them
        [np.ascontiguousarray(values) for values in (obs[:, i], action[:, i], reward[:, i], terminated)]
        for i in range(N_AGENTS)
    ]
    agents = [PLAIN[name](setting.hidden) for _ in range(N_AGENTS)]

    def others(agent: int, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        """What joint critics also see of the others: observations and actions, and those that come next."""
        now, then = [], []
        for other in range(N_AGENTS):
            if other != agent:
                next_obs = torch.from_numpy(buffers[other][0][chosen + 1])
                now += [torch.from_numpy(column[chosen]) for column in buffers[other][:2]]
                then += [next_obs, torch.tanh(agents[other].target_policy(next_obs))]
        return torch.cat(now, dim=1), torch.cat(then, dim=1).detach()

    def update() -> None:
        for index, (agent, (obs, action, reward, done)) in enumerate(zip(agents, buffers, strict=True)):
            chosen = rows[np.random.choice(np.arange(len(rows)), setting.batch_size, replace=False)]
            extra = others(index, chosen) if "joint" in name else ()
            agent.update(
                torch.from_numpy(obs[chosen]),
                torch.from_numpy(action[chosen]),
                torch.from_numpy(reward[chosen]).unsqueeze(1),
                torch.from_numpy(obs[chosen + 1]),
                torch.from_numpy(done[chosen]).unsqueeze(1),
                *extra,
            )

    return update


# ---- d3rlpy

D3RLPY = ("bc", "td3bc", "cql")  # it has no OMAR, and critics of one agent only


def d3rlpy_peer(name: str, table: Transitions, setting: Setting, samples: int = SAMPLES) -> Update:
    """One update of d3rlpy's algorithm for each agent, each on a batch of a buffer of its own."""
    import d3rlpy

    encoder = d3rlpy.models.VectorEncoderFactory(list(setting.hidden))
    usual: dict[str, Any] = {
        "batch_size": setting.batch_size,
        "gamma": GAMMA,
        "tau": TAU,
        "actor_encoder_factory": encoder,
        "critic_encoder_factory": encoder,
    }
    config: Any = {
        "bc": lambda: d3rlpy.algos.BCConfig(batch_size=setting.batch_size, encoder_factory=encoder),
        "td3bc": lambda: d3rlpy.algos.TD3PlusBCConfig(update_actor_interval=1, **usual),
        "cql": lambda: d3rlpy.algos.CQLConfig(
            conservative_weight=ALPHA, n_action_samples=samples, alpha_learning_rate=0.0, **usual
        ),
    }[name]
    sides = []
    for buffer in d3rlpy_buffers(table, SMALL_BUFFER_EPISODES, HORIZON):
        algorithm = config().create(device=False)
        algorithm.build_with_dataset(buffer)
        sides.append((algorithm, buffer))

    def update() -> None:
        for algorithm, buffer in sides:
            algorithm.update(buffer.sample_transition_batch(setting.batch_size))

    return update


# ---- measuring


def within(block: Callable[[], AbstractContextManager[object]], update: Update) -> Update:
    """Make each update inside a `with` block of its own."""

    def inside() -> None:
        with block():
            update()

    return inside


def default_precision() -> AbstractContextManager[object]:
    """Multiply matrices as PyTorch does when nobody asks for anything else."""
    return matmul_precision("highest", torch.device("cpu"))


def in_turns(sides: dict[str, Update], rounds: int) -> dict[str, float]:
    """Median milliseconds an update of each side; the fast side runs four times a turn.

    With one thread this is processor time, which other processes disturb less.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, update in sides.items():
            repeats = 4 if name == "offmarl" else 1
            begin = clock()
            for _ in range(repeats):
                update()
            if turn > 1:  # the first turns warm caches and allocators
                taken[name].append((clock() - begin) / repeats)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in taken.items()}


def measure(table: Transitions, threads: int, rounds: int, names: Sequence[str]) -> dict[str, Row]:
    """Rows of the table: offmarl against each peer."""
    torch.set_num_threads(threads)
    rows: dict[str, Row] = {}
    for setting in SETTINGS:
        for name in names:
            sides = {"offmarl": ours(name, table, setting), "plain loop": plain(name, table, setting)}
            sides["plain loop as it comes"] = within(default_precision, plain(name, table, setting))
            sides["offmarl uncompiled"] = within(lambda: kernels("torch"), ours(name, table, setting))
            with contextlib.suppress(ImportError), contextlib.redirect_stdout(sys.stderr):
                if name in D3RLPY:
                    sides["d3rlpy"] = d3rlpy_peer(name, table, setting)  # it logs to stdout
                if name == "cql":  # its "n samples" are n uniform, n of π(o) and n of π(o')
                    sides["d3rlpy, 3 samples of each kind"] = d3rlpy_peer(name, table, setting, samples=3)
            taken = in_turns(sides, rounds)
            for peer in list(taken)[1:]:
                row = row_of_times(taken["offmarl"], taken[peer], "ms")
                rows[f"{name}, {setting.name}, threads {threads}, against {peer}"] = row
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--learners", nargs="+", choices=list(PLAIN), default=list(PLAIN))
    parser.add_argument("--matmul-precision", default=TrainConfig.matmul_precision, help="for all sides")
    arguments = parser.parse_args()
    keep_freed_memory()  # as training does; the peers profit as well
    table = random_transitions(arguments.transitions)
    results: dict[str, Row] = {}
    with matmul_precision(arguments.matmul_precision, torch.device("cpu")):
        for threads in arguments.threads:
            results |= measure(table, threads, arguments.rounds, arguments.learners)
    print_rows(results, arguments.json, need_d3rlpy=True)


if __name__ == "__main__":
    main()
