"""Any PettingZoo `ParallelEnv` as a batched environment: E copies spread over worker processes.

Shapes: E copies, N learning agents, P agents in all, O observation, A action, K choices, D state.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offmarl.envs.base import Environment, EnvSpec, Frame, Step
from offmarl.envs.pettingzoo_worker import Arrays, Description, Opens, serve
from offmarl.errors import OffmarlError, UsageError
from offmarl.streams import stream_seed

BackgroundPolicy = Callable[[Tensor, Tensor | None], Tensor]  # obs [E, P, O], legal [E, P, K] -> actions


class Workers:
    """Processes that hold copies of an environment, spoken to one request at a time."""

    def __init__(self, source: Opens, num_envs: int, processes: int | None):
        processes = min(num_envs, processes or os.cpu_count() or 1)
        bounds = np.linspace(0, num_envs, processes + 1).round().astype(int)
        self.chunks = [slice(int(a), int(b)) for a, b in pairwise(bounds)]
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads and locks
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        with _one_thread_each():
            for chunk in self.chunks:
                ours, theirs = context.Pipe()
                arguments = (theirs, source, chunk.start, chunk.stop - chunk.start)
                process = context.Process(target=serve, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self._connections.append(ours)
                self._processes.append(process)

    def ask(self, request: str, arguments: Sequence[Any] | None = None) -> list[Any]:
        """Send every worker its own argument (or none) and collect the answers.

        Raises `OffmarlError` with what went wrong inside, after stopping all workers, and `UsageError` after that.
        """
        if not self._connections:
            raise UsageError("the environment is closed: make another")
        for k, connection in enumerate(self._connections):
            with suppress(OSError):  # a worker that is gone shows when its answer is due
                connection.send((request,) if arguments is None else (request, arguments[k]))
        answers = [_receive(connection) for connection in self._connections]
        failed = [answer for answer in answers if answer and answer[0] == "failed"]
        if failed:
            self.close()
            _, text, wrong_use, details = failed[0]
            error = (UsageError if wrong_use else OffmarlError)(text)
            error.add_note(details)
            raise error
        if None in answers:
            process = self._processes[answers.index(None)]
            process.join(timeout=5)
            code = process.exitcode
            self.close()
            raise OffmarlError(
                f"a worker process died in '{request}' (exit code {code}); it may have run out of memory, or "
                "the main module cannot be imported twice: make environments under if __name__ == '__main__'"
            )
        return [answer[1] for answer in answers if answer]

    def close(self) -> None:
        """Ask all workers to stop, and end those that do not."""
        for connection in self._connections:
            with suppress(OSError):  # it may be gone already
                connection.send(("close",))
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()
        for connection in self._connections:
            connection.close()
        self._connections, self._processes = [], []


class PettingZooEnvironment(Environment):
    """E copies of a `ParallelEnv` behind `Workers`. Close it, or use it in a `with` block."""

    def __init__(
        self,
        spec: EnvSpec,
        description: Description,
        workers: Workers,
        num_envs: int,
        background: Mapping[str, BackgroundPolicy],
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ):
        self.spec = spec
        self.num_envs = num_envs
        self.device = generator.device
        self._dtype = dtype
        self._workers = workers
        agents = list(description.agents)
        self._learning = [agents.index(agent) for agent in spec.agents]
        self._background = [(agents.index(agent), policy) for agent, policy in background.items()]
        self._widths = description.obs_dims
        self._action_dim = max(description.action_dims)
        self._generator = generator
        self._position = None
        if all({"position_x", "position_y"} <= set(names) for names in spec.obs_names):
            self._position = [[names.index(f"position_{axis}") for axis in "xy"] for names in spec.obs_names]
        self._winnable = description.winnable
        self._seen: Arrays | None = None  # of all agents, for the background's next action
        workers.ask("start", [list(spec.agents)] * len(workers.chunks))

    def reset(self, seed: int) -> Frame:
        """Start a new episode in every copy; the same seed gives the same episodes, however many workers."""
        self._generator.manual_seed(stream_seed(seed, "pettingzoo", "background"))
        seeds = [stream_seed(seed, "pettingzoo", copy) for copy in range(self.num_envs)]
        self._seen = _join(self._workers.ask("reset", [seeds[chunk] for chunk in self._workers.chunks]))
        return self._frame(self._seen)

    def step(self, action: Tensor) -> Step:
        """Advance every copy by one joint action: [E, N, A] in [-1, 1], or [E, N] integers.

        Raises `UsageError` before the first `reset`, or for another shape; `OffmarlError` if a simulator
        fails.
        """
        if self._seen is None:
            raise UsageError("call reset before step")
        shape: tuple[int, ...] = (self.num_envs, self.spec.n_agents)
        if not self.spec.discrete:
            shape += (self.spec.action_dim,)
        if action.shape != shape:
            raise UsageError(f"{self.spec.id}: actions have shape {tuple(action.shape)}, expected {shape}")
        joint = self._joint(action)
        answers = self._workers.ask("step", [joint[chunk] for chunk in self._workers.chunks])
        self._seen = _join([answer["frame"] for answer in answers])
        told = ("reward", "terminated", "truncated", "won")
        flat = _join([{name: answer[name] for name in told} for answer in answers])
        successor = self._frame(_join([answer["successor"] for answer in answers]))
        ended = flat["terminated"] | flat["truncated"]
        agent_reward = self._tensor(flat["reward"][:, self._learning])
        return Step(
            frame=self._frame(self._seen) if ended.any() else successor,
            successor=successor,
            team_reward=agent_reward.sum(1),
            agent_reward=agent_reward,
            terminated=torch.from_numpy(flat["terminated"]).to(self.device),
            truncated=torch.from_numpy(flat["truncated"]).to(self.device),
            won=torch.from_numpy(flat["won"]).to(self.device) if self._winnable else None,
        )

    def picture(self, copy: int = 0) -> np.ndarray | None:
        """What a copy draws of itself now, [H, W, 3] uint8.

        None where it cannot: most need the option `render_mode` "rgb_array".
        """
        wanted = [copy - own.start if own.start <= copy < own.stop else None for own in self._workers.chunks]
        drawn = self._workers.ask("picture", wanted)
        return next((picture for picture in drawn if picture is not None), None)

    def close(self) -> None:
        """Stop the workers."""
        self._workers.close()

    def _joint(self, action: Tensor) -> np.ndarray:
        """Actions of all P agents, the background's among them."""
        assert self._seen is not None
        agents = len(self._widths)
        if self.spec.discrete:
            joint = torch.zeros(self.num_envs, agents, dtype=torch.int64, device=self.device)
            joint[:, self._learning] = action.to(joint)
        else:
            joint = torch.zeros(
                self.num_envs, agents, self._action_dim, dtype=torch.float64, device=self.device
            )
            joint[:, self._learning, : action.shape[-1]] = action.to(joint)
        for agent, policy in self._background:
            obs = self._tensor(self._seen["obs"][:, agent : agent + 1, : self._widths[agent]])
            legal = self._seen.get("legal")
            mask = None if legal is None else torch.from_numpy(legal[:, agent : agent + 1]).to(self.device)
            chosen = policy(obs, mask)
            if self.spec.discrete:
                joint[:, agent] = chosen[:, 0]
            else:
                joint[:, agent, : chosen.shape[-1]] = chosen[:, 0].to(joint)
        return joint.cpu().numpy()

    def _frame(self, seen: Arrays) -> Frame:
        obs = self._tensor(seen["obs"][:, self._learning, : self.spec.obs_dim])
        legal, state = seen.get("legal"), seen.get("state")
        position = None
        if self._position is not None:
            position = torch.stack([obs[:, i, columns] for i, columns in enumerate(self._position)], 1)
        width = self.spec.action_dim
        return Frame(
            obs=obs,
            state=None if state is None else self._tensor(state),
            legal=None
            if legal is None
            else torch.from_numpy(legal[:, self._learning, :width]).to(self.device),
            alive=torch.from_numpy(seen["alive"][:, self._learning]).to(self.device),
            position=position,
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, self._dtype)


def _join(parts: list[Arrays]) -> Arrays:
    """The workers' arrays, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _receive(connection: Connection) -> tuple[Any, ...] | None:
    """A worker's answer; None where it is gone."""
    try:
        answer: tuple[Any, ...] = connection.recv()
        return answer
    except (EOFError, OSError):
        return None


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes started meanwhile use one BLAS thread, and hide pygame's greeting."""
    wanted = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
