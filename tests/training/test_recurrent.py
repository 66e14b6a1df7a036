"""Runs whose policies have a memory: trained on whole episodes, resumed, evaluated, exported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from walk import config, record

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec, Frame
from offmarl.errors import UsageError
from offmarl.learners.registry import make_learner
from offmarl.policy import RecurrentPolicy, load_policy
from offmarl.streams import stream
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.export import export_run, probes
from offmarl.training.loop import train
from offmarl.training.run import RunFolder
from offmarl.training.run import load_policy as load_run

NAMES, EPISODES = ("red", "blue"), 40
SPEC = EnvSpec(
    id="battle",
    agents=NAMES,
    groups=(NAMES,),
    action_type="discrete",
    obs_names=(("x", "y"), ("x", "y", "z")),
    action_names=(("a", "b"), ("a", "b", "c")),
    state_names=("s", "t"),
    horizon=10,
)
VALUES = {"hidden": [8, 6]}


def table() -> Transitions:
    g = stream(0, "battle")
    length = torch.randint(3, 11, (EPISODES,), generator=g)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), (length + 1).cumsum(0)])
    rows = int(start[-1])
    terminated = torch.zeros(rows)
    terminated[start[1:] - 2] = 1
    arrays = {
        "obs": torch.randn(rows, 2, 3, generator=g),
        "state": torch.randn(rows, 2, generator=g),
        "legal": torch.ones(rows, 2, 3),
        "action": torch.randint(2, (rows, 2), generator=g).float(),
        "team_reward": torch.randn(rows, generator=g),
        "terminated": terminated,
        "truncated": torch.zeros(rows),
    }
    return Transitions.from_arrays(SPEC, arrays, start)


def run_of(folder: Path, learner: str, resume: bool = False, progress=None, **values: object) -> RunFolder:
    usual = {"steps": 8, "batch_size": 12, "log_every": 2, "checkpoint_every": 4}
    if resume:
        run = RunFolder.open(folder)
    else:
        run = RunFolder.create(folder, record(f"battle/test-v0/{learner}", (0, 1), learner, SPEC, VALUES))
    made = make_learner(learner, SPEC, VALUES, [0, 1])
    train(made, table(), config(**{**usual, **values}), run, resume, progress)
    return run


@pytest.mark.parametrize("learner", ["bc", "cql", "qmix_cql"])
def test_an_interrupted_run_on_episodes_resumes_to_the_same_numbers(tmp_path, learner):
    def interrupt(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    whole = run_of(tmp_path / "whole", learner)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "broken", learner, progress=interrupt)
    assert Checkpoint.load(tmp_path / "broken/checkpoint.safetensors").step == 4
    resumed = run_of(tmp_path / "broken", learner, resume=True)
    first, second = load_file(whole.checkpoint_path), load_file(resumed.checkpoint_path)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_batch_is_32_episodes_unless_asked_otherwise(tmp_path, monkeypatch):
    drawn = []
    sample = Transitions.sample_episodes
    monkeypatch.setattr(
        Transitions,
        "sample_episodes",
        lambda self, size, generators: drawn.append(size) or sample(self, size, generators),
    )
    run_of(tmp_path / "usual", "bc", batch_size=None, steps=2)
    run_of(tmp_path / "asked", "bc", batch_size=5, steps=2)
    assert drawn == [32, 32, 5, 5]
    with pytest.raises(UsageError, match="batch of 41 is larger than the data: 40 episodes"):
        run_of(tmp_path / "many", "bc", batch_size=41)


def by_step(step, obs: torch.Tensor, legal: torch.Tensor, memory: torch.Tensor) -> list[torch.Tensor]:
    """Play the frames [B, T, ...] of B episodes one after another."""
    actions = []
    for t in range(obs.shape[1]):
        action, memory = step(obs[:, t], legal[:, t], memory)
        actions.append(torch.as_tensor(action))
        memory = torch.as_tensor(memory)
    return actions


def of_the_run(run: RunFolder, seed: int, obs: torch.Tensor, legal: torch.Tensor) -> list[torch.Tensor]:
    policy = load_run(run).of_seed(seed)
    policy.begin(torch.ones(len(obs), dtype=torch.bool), stream(0))
    return [policy.act(Frame(obs[:, t], legal=legal[:, t]), stream(0)) for t in range(obs.shape[1])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = run_of(tmp_path_factory.mktemp("run") / "run", "qmix_cql")
    # Values that depend on the past more than eight updates make them, so that a lost memory is seen.
    saved = Checkpoint.load(run.checkpoint_path)
    for layer in ("input", "memory", "head"):
        saved.learner[f"critic.{layer}.weight"] *= 6
    saved.save(run.checkpoint_path)
    return run


@pytest.fixture
def played(trained):
    obs = torch.randn(200, 4, 2, 3, generator=stream(0, "frames"))
    legal = torch.rand(200, 4, 2, 3, generator=stream(1, "frames")) < 0.7
    legal[..., 0] = True
    return obs, legal, of_the_run(trained, 1, obs, legal)


def test_an_exported_policy_remembers_as_the_run_does(trained, played, tmp_path):
    obs, legal, expected = played
    about = export_run(trained, "offmarl", tmp_path / "out", seed=1)
    assert list(about["inputs"]) == ["obs", "legal", "memory"]
    assert about["inputs"]["memory"] == {"shape": ["B", 2, 6], "type": "float32"}
    assert about["outputs"] == ["action", "next_memory"]
    policy = load_policy(tmp_path / "out")
    assert isinstance(policy, RecurrentPolicy)
    found = by_step(policy, obs, legal, policy.begin(200))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(expected, found, strict=True))
    assert (found[0][:, 0] <= 1).all()  # red has two choices
    one, memory = policy(obs[0, 0], None, policy.begin(1)[0])
    assert (one.shape, memory.shape) == ((2,), (2, 6))
    forgetful = [policy(obs[:, t], legal[:, t], policy.begin(200))[0] for t in range(4)]
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(expected, forgetful, strict=True))


def test_torchscript_remembers_without_this_package(trained, played, tmp_path):
    obs, legal, expected = played
    export_run(trained, "torchscript", tmp_path / "out", seed=1)
    save_file({"obs": obs, "legal": legal}, str(tmp_path / "in.safetensors"))
    script = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "sys.modules['offmarl'] = None\n"
        f"policy = torch.jit.load({str(tmp_path / 'out/policy.pt')!r})\n"
        f"given, memory, actions = load_file({str(tmp_path / 'in.safetensors')!r}), torch.zeros(200, 2, 6), []\n"
        "for t in range(4):\n"
        "    action, memory = policy(given['obs'][:, t], given['legal'][:, t], memory)\n"
        "    actions.append(action)\n"
        f"save_file({{'action': torch.stack(actions)}}, {str(tmp_path / 'out.safetensors')!r})\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
    assert torch.equal(load_file(tmp_path / "out.safetensors")["action"], torch.stack(expected))


def test_onnx_remembers(trained, played, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    obs, legal, expected = played
    about = export_run(trained, "onnx", tmp_path / "out", seed=1)
    session = onnxruntime.InferenceSession(str(tmp_path / "out/policy.onnx"))
    assert [given.name for given in session.get_inputs()] == list(about["inputs"])
    assert [given.name for given in session.get_outputs()] == about["outputs"]

    def step(*given: torch.Tensor) -> list[torch.Tensor]:
        return session.run(
            None, {name: one.numpy() for name, one in zip(about["inputs"], given, strict=True)}
        )

    found = by_step(step, obs, legal, torch.zeros(200, 2, 6))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(expected, found, strict=True))


def test_probes_stand_in_the_middle_of_an_episode(trained):
    given = probes(load_run(trained).learner)
    assert given["memory"].shape == (64, 2, 6)
    assert (given["memory"] != 0).all()
