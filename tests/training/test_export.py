"""Exported policies act as the run does, and need nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from walk import record

from offmarl.data.table import Transitions
from offmarl.envs.base import EnvSpec
from offmarl.errors import DataError, OffmarlError, UsageError
from offmarl.learners.registry import make_learner
from offmarl.policy import load_policy
from offmarl.streams import stream
from offmarl.training.export import export_run, probes
from offmarl.training.loop import TrainConfig, train
from offmarl.training.run import RunFolder
from offmarl.training.run import load_policy as load_run

ROWS = 88


def inputs(task: EnvSpec) -> tuple[torch.Tensor, torch.Tensor | None]:
    given = probes(make_learner("bc", task))
    return given["obs"], given.get("legal")


def spec(discrete: bool, roles: bool = False) -> EnvSpec:
    """Two agents; the first sees less and has fewer actions."""
    return EnvSpec(
        id="walk",
        agents=("red", "blue"),
        groups=(("red",), ("blue",)) if roles else (("red", "blue"),),
        action_type="discrete" if discrete else "continuous",
        obs_names=(("x", "y"), ("x", "y", "z")),
        action_names=(("a", "b"), ("a", "b", "c")),
        horizon=10,
    )


def table(task: EnvSpec) -> Transitions:
    g = stream(0, "walk")
    obs = 5 + 3 * torch.randn(ROWS, 2, 3, generator=g)
    obs[:, 0, 2] = 0
    action = torch.rand(ROWS, 2, 3, generator=g) * 2 - 1
    action[:, 0, 2] = 0
    arrays = {
        "obs": obs,
        "action": torch.randint(2, (ROWS, 2), generator=g).float() if task.discrete else action,
        "team_reward": torch.randn(ROWS, generator=g),
        "terminated": torch.zeros(ROWS),
        "truncated": torch.zeros(ROWS),
    }
    return Transitions.from_arrays(task, arrays, torch.arange(0, ROWS + 1, 11))


def trained(folder: Path, learner: str, task: EnvSpec, **values: object) -> RunFolder:
    settings = {"hidden": [8, 8], **values}
    run = RunFolder.create(folder, record(f"walk/test-v0/{learner}", (3, 5), learner, task, settings))
    config = TrainConfig(steps=6, batch_size=16, log_every=6, checkpoint_every=6, tensorboard=False)
    train(make_learner(learner, task, settings, [3, 5]), table(task), config, run)
    return run


def as_the_run(run: RunFolder, index: int, obs: torch.Tensor, legal: torch.Tensor | None) -> torch.Tensor:
    learner = load_run(run).learner
    return learner.act(obs.expand(2, *obs.shape), None if legal is None else legal.expand(2, *legal.shape))[
        index
    ]


def same(
    run: RunFolder, index: int, found: torch.Tensor, obs: torch.Tensor, legal: torch.Tensor | None
) -> None:
    expected = as_the_run(run, index, obs, legal)
    if legal is None:
        expected[:, 0, 2] = 0  # red has no third dimension
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    ("learner", "discrete"),
    [
        ("bc", False),
        ("td3bc", False),
        ("cql", False),
        ("iql", False),
        ("bc", True),
        ("cql", True),
        ("omar", True),
    ],
)
def test_a_policy_loads_by_itself_and_acts_as_the_run(tmp_path, learner, discrete, share, roles):
    task = spec(discrete, roles)
    run = trained(tmp_path / "run", learner, task, share=share)
    about = export_run(run, "offmarl", tmp_path / "out", seed=5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["policy.json", "policy.safetensors"]
    policy = load_policy(tmp_path / "out")
    assert policy.about == json.loads((tmp_path / "out/policy.json").read_text()) == about
    assert (about["seed"], about["steps"], about["agents"]) == (5, 6, ["red", "blue"])
    obs, legal = inputs(task)
    obs = 5 + 3 * obs
    same(run, 1, policy(obs, legal), obs, legal)
    first_seed = as_the_run(run, 0, obs, legal)
    assert discrete or not torch.allclose(policy(obs), first_seed, atol=1e-3)  # another seed
    one = policy(obs[0], None if legal is None else legal[0])
    assert torch.equal(one, policy(obs[:1], None if legal is None else legal[:1])[0])


def test_three_lines_need_no_training_code(tmp_path):
    run = trained(tmp_path / "run", "td3bc", spec(False))
    about = export_run(run, "offmarl", tmp_path / "out")
    script = (
        f"import sys, torch\n{about['load']}\naction = policy(torch.ones(4, 2, 3))\n"
        "loaded = [name for name in sys.modules if name.startswith('offmarl.')]\n"
        "assert sorted(loaded) == ['offmarl.errors', 'offmarl.policy', 'offmarl.stored_json'], loaded\n"
        "print(action.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    same(run, 0, torch.tensor(json.loads(done.stdout)), torch.ones(4, 2, 3), None)


@pytest.mark.parametrize("discrete", [False, True])
def test_torchscript_needs_only_pytorch(tmp_path, discrete):
    run = trained(tmp_path / "run", "bc", spec(discrete))
    export_run(run, "torchscript", tmp_path / "out")
    obs, legal = inputs(run.spec)
    save_file(
        {"obs": obs} if legal is None else {"obs": obs, "legal": legal}, str(tmp_path / "in.safetensors")
    )
    script = (
        "import sys, torch; from safetensors.torch import load_file, save_file\n"
        "sys.modules['offmarl'] = None\n"
        f"policy = torch.jit.load({str(tmp_path / 'out/policy.pt')!r})\n"
        f"given = load_file({str(tmp_path / 'in.safetensors')!r})\n"
        "action = policy(*[given[name] for name in ('obs', 'legal') if name in given])\n"
        f"save_file({{'action': action.contiguous()}}, {str(tmp_path / 'out.safetensors')!r})\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
    same(run, 0, load_file(tmp_path / "out.safetensors")["action"], obs, legal)


@pytest.mark.parametrize("discrete", [False, True])
def test_onnx_runs_on_any_number_of_frames(tmp_path, discrete):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    run = trained(tmp_path / "run", "bc", spec(discrete))
    about = export_run(run, "onnx", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["policy.json", "policy.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "out/policy.onnx"))
    assert [given.name for given in session.get_inputs()] == list(about["inputs"])
    obs, legal = inputs(run.spec)
    for frames in (1, 7):
        given = {"obs": obs[:frames].numpy()} | ({} if legal is None else {"legal": legal[:frames].numpy()})
        found = torch.from_numpy(session.run(None, given)[0])
        same(run, 0, found, obs[:frames], None if legal is None else legal[:frames])


@pytest.mark.parametrize(("algorithm", "discrete"), [("iql", False), ("sac", True), ("cql", True)])
def test_d3rlpy_policies_export_as_torchscript(tmp_path, algorithm, discrete):
    pytest.importorskip("d3rlpy")
    run = trained(tmp_path / "run", f"d3rlpy:{algorithm}", spec(discrete))
    with pytest.raises(UsageError, match=f"d3rlpy:{algorithm}.*--format torchscript"):
        export_run(run, "offmarl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_run(run, "torchscript", tmp_path / "out", seed=5)
    script = torch.jit.load(tmp_path / "out/policy.pt")
    obs, legal = inputs(run.spec)
    for frames in (len(obs), 1, 3):
        few, allowed = obs[:frames], None if legal is None else legal[:frames]
        same(run, 1, script(*([few] if allowed is None else [few, allowed])), few, allowed)
    with pytest.raises(DataError, match=r"holds policy\.pt: import torch; policy = torch\.jit\.load"):
        load_policy(tmp_path / "out")


def test_a_policy_that_draws_is_not_exported(tmp_path):
    pytest.importorskip("d3rlpy")
    run = trained(tmp_path / "run", "d3rlpy:bcq", spec(False))
    with pytest.raises(OffmarlError, match="d3rlpy:bcq draws at random"):
        export_run(run, "torchscript", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wrong_requests_write_nothing(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", "bc", spec(False))
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="did you mean torchscript"):
        export_run(run, "torch-script", out)
    with pytest.raises(UsageError, match="--seed 4: run walk/test-v0/bc has the seeds 3, 5"):
        export_run(run, "offmarl", out, seed=4)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r'pip install "offmarl\[onnx\]"'):
        export_run(run, "onnx", out)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no exported policy"):
        export_run(run, "offmarl", out, overwrite=True)
    (out / "thesis.tex").unlink()
    export_run(run, "offmarl", out)
    with pytest.raises(UsageError, match="--overwrite replaces it"):
        export_run(run, "torchscript", out)
    export_run(run, "torchscript", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["policy.json", "policy.pt"]


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", "bc", spec(False))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for out in (Path("."), here):
        with pytest.raises(UsageError, match="take one inside the current folder"):
            export_run(run, "offmarl", out)
    assert not any(here.iterdir())
    assert export_run(run, "offmarl", Path("policy"))["file"] == "policy.safetensors"


FULL_DISK = """
import resource, signal
from pathlib import Path
from offmarl.training.checkpoint import Checkpoint
from offmarl.training.export import export_run
from offmarl.training.run import RunFolder
run, checkpoint = RunFolder.open(Path("run")), Path("run/checkpoint.safetensors")
saved = Checkpoint.load(checkpoint)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))  # bytes of a file
for write in (
    lambda: export_run(run, "offmarl", Path("out/policy")),
    lambda: export_run(run, "torchscript", Path("out/policy")),
    lambda: saved.save(checkpoint),
):
    try:
        write()
    except OSError as error:
        print("OSError", error)
"""


def test_a_full_disk_is_an_error_of_one_line_and_leaves_nothing(tmp_path):
    run = trained(tmp_path / "run", "bc", spec(False))
    (tmp_path / "out").mkdir()
    child = subprocess.run([sys.executable, "-c", FULL_DISK], cwd=tmp_path, capture_output=True, text=True)
    assert [line.split()[0] for line in child.stdout.splitlines()] == ["OSError"] * 3, child.stderr
    assert not any((tmp_path / "out").iterdir())
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]
    load_run(run)


def test_damaged_exports_are_refused_by_name(tmp_path):
    run = trained(tmp_path / "run", "bc", spec(False))
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no policy\.json"):
        load_policy(out)
    export_run(run, "offmarl", out)
    good = (out / "policy.safetensors").read_bytes()
    (out / "policy.safetensors").write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError, match=r"policy\.safetensors cannot be read"):
        load_policy(out)
    save_file({"obs_mean": torch.zeros(2, 4)}, str(out / "policy.safetensors"))
    with pytest.raises(DataError, match="does not hold the tensors"):
        load_policy(out)
    about = json.loads((out / "policy.json").read_text())
    for name in ("file", "action_type", "tensors"):
        (out / "policy.json").write_text(json.dumps({**about, name: None}))
        with pytest.raises(DataError, match="tensors that policy.json lists" if name == "tensors" else name):
            load_policy(out)
    (out / "policy.json").write_text('{"format": "else"}')
    with pytest.raises(DataError, match="its format is 'else'"):
        load_policy(out)


def test_a_learner_that_acts_otherwise_is_found_out(tmp_path, monkeypatch):
    run = trained(tmp_path / "run", "bc", spec(False))
    from offmarl.learners.bc import BC

    acts = BC.act
    monkeypatch.setattr(BC, "act", lambda self, obs, legal=None: acts(self, obs, legal) * 0.9)
    with pytest.raises(OffmarlError, match="nothing was exported"):
        export_run(run, "offmarl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
