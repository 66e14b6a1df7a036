"""How fast data is loaded and sampled, as ratios against the disk and against peers. One thread.

    python benchmarks/data.py [--transitions 1000000] [--json]

A ratio above 1 means that offmarl is faster. Runs alternate between both sides; medians are compared.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from d3rlpy_buffers import d3rlpy_buffers
from random_task import ACTION, HORIZON, N_AGENTS, random_task
from report import Row, parser_of, print_rows, row_of_rates

from offmarl.data.load import load_transitions
from offmarl.data.store import Dataset
from offmarl.data.table import Transitions
from offmarl.data.writer import Writer
from offmarl.streams import stream

OBS, BATCH = 18, 1024


def make_dataset(folder: Path, transitions: int) -> Dataset:
    """Random numbers in the shape of a particle task: 3 agents, observations of 18, episodes of 25 steps."""
    spec = random_task(OBS)
    numbers = np.random.default_rng(0)
    episodes_left = -(-transitions // HORIZON)
    with Writer(folder, spec, id="benchmark/random-v0") as writer:
        while episodes_left:
            episodes = min(episodes_left, 1000)
            rows = episodes * (HORIZON + 1)
            truncated = np.zeros((episodes, HORIZON + 1), dtype=np.uint8)
            truncated[:, -2] = 1
            last = slice(HORIZON, None, HORIZON + 1)  # final observations: no action, no reward
            agent_reward = numbers.standard_normal((rows, N_AGENTS), dtype=np.float32)
            action = numbers.uniform(-1, 1, (rows, N_AGENTS, ACTION)).astype(np.float32)
            agent_reward[last], action[last] = 0, 0
            arrays = {
                "obs": numbers.standard_normal((rows, N_AGENTS, OBS), dtype=np.float32),
                "action": action,
                "team_reward": agent_reward.sum(1),
                "agent_reward": agent_reward,
                "terminated": np.zeros(rows, dtype=np.uint8),
                "truncated": truncated.ravel(),
            }
            writer.append(arrays, [HORIZON + 1] * episodes)
            episodes_left -= episodes
    return Dataset.open(folder)


def compare(ours: Callable[[], object], peer: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of both, taken in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, seconds in zip((ours, peer), times, strict=True):
            begin = time.perf_counter()
            result = function()
            if repeat:  # the first run warms caches
                seconds.append(time.perf_counter() - begin)
            del result
    return statistics.median(times[0]), statistics.median(times[1])


def row(seconds: tuple[float, float], work: float, unit: str) -> Row:
    """Both sides as `work` done per second."""
    return row_of_rates(work / seconds[0], work / seconds[1], unit)


def load_against_raw(dataset: Dataset) -> Row:
    """Compare loading to the table with reading the bytes of the same arrays into fresh memory."""
    path = dataset.folder / "data.h5"
    left_out = ("agent_reward", "position")
    used = sum(
        int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
        for name, array in dataset.card.arrays.items()
        if name not in left_out
    )
    seconds = compare(lambda: load_transitions(dataset), lambda: np.fromfile(path, np.uint8, used), 9)
    return row(seconds, used / 1e9, "GB/s")


def sample_against_h5py(dataset: Dataset, table: Transitions) -> Row:
    """Compare a batch from the table with fancy reads of the file."""
    generator, numbers = stream(0, "benchmark"), np.random.default_rng(0)
    rows = table.transition_rows.numpy()
    with h5py.File(dataset.folder / "data.h5") as file:

        def fancy() -> list[np.ndarray]:
            chosen = np.sort(numbers.choice(rows, BATCH, replace=False))
            current = [file[name][chosen] for name in ("obs", "action", "team_reward", "terminated")]
            return [*current, file["obs"][chosen + 1], file["action"][chosen + 1]]

        return row(compare(lambda: table.sample(BATCH, [generator]), fancy, 21), 1e-3, "batches/ms")


def sample_against_choice(table: Transitions) -> Row:
    """Compare a batch for all agents with `np.random.choice` and one fancy index an array and agent.

    So the replay buffers of the MPE papers' code do it, without replacement.
    """
    rows = table.transition_rows
    arrays = []
    for agent in range(N_AGENTS):
        arrays.append(
            [
                table.column("obs")[rows, agent].numpy(),
                table.column("action")[rows, agent].numpy(),
                table.column("reward")[rows, agent].numpy(),
                table.column("obs")[rows + 1, agent].numpy(),
                table.column("done")[rows].numpy(),
            ]
        )

    def choice() -> list[list[torch.Tensor]]:
        batch = []
        for of_agent in arrays:
            chosen = np.random.choice(np.arange(len(rows)), BATCH, replace=False)
            batch.append([torch.from_numpy(values[chosen]) for values in of_agent])
        return batch

    generator = stream(0, "benchmark")
    return row(compare(lambda: table.sample(BATCH, [generator]), choice, 21), 1e-3, "batches/ms")


def sample_against_d3rlpy(table: Transitions) -> Row | None:
    """Compare a batch for all agents with one of d3rlpy's replay buffer for each; None if not installed."""
    try:
        buffers = d3rlpy_buffers(table, 4000, HORIZON)  # small ones: to d3rlpy's advantage
    except ImportError:
        return None
    generator = stream(0, "benchmark")
    seconds = compare(
        lambda: table.sample(BATCH, [generator]),
        lambda: [buffer.sample_transition_batch(BATCH) for buffer in buffers],
        21,
    )
    return row(seconds, 1e-3, "batches/ms")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_dataset(Path(folder) / "random", arguments.transitions)
        results = {"load, against the raw bytes": load_against_raw(dataset)}
        table = load_transitions(dataset)
        results["batch of 1,024, against h5py fancy reads"] = sample_against_h5py(dataset, table)
        results["batch of 1,024, against np.random.choice"] = sample_against_choice(table)
        with contextlib.redirect_stdout(sys.stderr):  # d3rlpy logs to stdout
            d3rlpy_row = sample_against_d3rlpy(table)
        if d3rlpy_row is not None:
            results["batch of 1,024, against d3rlpy"] = d3rlpy_row
    print_rows(results, arguments.json, need_d3rlpy=True)


if __name__ == "__main__":
    main()
