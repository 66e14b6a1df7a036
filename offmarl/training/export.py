"""Policies for use elsewhere: `offmarl export` writes one seed's policy into a folder of its own.

Shapes: B frames, N agents, O observation, A action dimensions or choices, H memory.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import offmarl
from offmarl.atomic import replace_folder, write_json
from offmarl.errors import OffmarlError, UsageError, unknown_name
from offmarl.learners.base import ObservingLearner
from offmarl.policy import ABOUT, FILES, FORMAT, Policy, load_policy
from offmarl.streams import stream
from offmarl.training.checkpoint import write_tensors
from offmarl.training.run import RunFolder
from offmarl.training.run import load_policy as load_run

Format = Literal["offmarl", "torchscript", "onnx"]
TOLERANCE = 1e-5
PROBES = 64  # frames on which an exported policy must act as the run does
ONNX_OPSET = 18

LOADING = {
    "offmarl": "from offmarl.policy import load_policy; policy = load_policy({folder!r})",
    "torchscript": "import torch; policy = torch.jit.load({file!r})",
    "onnx": "import onnxruntime; session = onnxruntime.InferenceSession({file!r})",
}

# What a policy takes by name: obs [B, N, O], for choices legal [B, N, A], with a memory memory [B, N, H]; what it
# answers: actions, and with a memory the next one.
Given = dict[str, Tensor]
Answer = tuple[Tensor, ...]
Runner = Callable[[Given], Answer]


@torch.no_grad()
def export_run(
    run: RunFolder, form: str, out: Path, seed: int | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Write the greedy policy of one of the run's seeds (the first if `seed` is None) into the folder `out`.

    What was written is loaded again and must act as the run does, to 1e-5. Returns the content of policy.json.
    Raises `UsageError` for an unknown format or seed, a folder that exists, a learner that the format cannot
    hold, and where the packages of a format are missing; `DataError` for a damaged run.
    """
    if form not in FILES:
        raise unknown_name("format", form, get_args(Format))
    if out.exists():
        _require_replaceable(out, overwrite)
    seeds = list(run.record["seeds"])
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UsageError(f"--seed {seed}: run {run.id} has the seeds {', '.join(map(str, seeds))}")
    trained = load_run(run)
    learner, index = trained.learner, seeds.index(seed)
    if not isinstance(learner, ObservingLearner):
        raise UsageError(
            f"{run.record['learner']} sees by rendering the state of a map, which no exported network does: let it act "
            "by `offmarl evaluate`, `watch`, `tournament` or `collect --policy`"
        )
    module = learner.exported(index).eval()
    given = probes(learner)
    expected = _answer(module, given)
    _require_same(expected, _answer(module, given), f"{run.record['learner']} draws at random when it acts")
    file = FILES[form]
    about: dict[str, Any] = {
        "format": FORMAT,
        "file": file,
        "load": LOADING[form].format(folder=str(out), file=str(out / file)),
        "action_type": learner.spec.action_type,
        "agents": list(learner.spec.agents),
        "obs_names": [list(names) for names in learner.spec.obs_names],
        "action_names": [list(names) for names in learner.spec.action_names],
        "inputs": _inputs(learner),
        "outputs": ["action", "next_memory"][: len(expected)],
        "run": run.id,
        "learner": run.record["learner"],
        "rewards": run.record["rewards"],
        "dataset": run.record["dataset"]["id"],
        "seed": seed,
        "steps": trained.steps,
        "env": learner.spec.model_dump(mode="json"),
        "versions": {"offmarl": offmarl.__version__, "torch": torch.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        if form == "offmarl":
            about["tensors"] = _write_tensors(module, temporary / file, run)
        elif form == "torchscript":
            _write_torchscript(module, temporary / file, given)
        else:
            _write_onnx(module, temporary / file, given)
        write_json(temporary / ABOUT, about)
        runner = _runner(form, temporary)
        for frames in (PROBES, 1, 3):  # no file may hold to the number of frames that it was written with
            few = {name: values[:frames] for name, values in given.items()}
            written = runner(few)
            _require_same(_answer(module, few), written, f"the {form} file does not act as run {run.id} does")
            _require_same(_run_acts(learner, index, few), written, f"the export of run {run.id} is wrong")
        temporary.chmod(0o755)
        replace_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return about


def probes(learner: ObservingLearner) -> Given:
    """Frames to compare policies on: normal, for choices with a legal one, in the middle of an episode."""
    spec, generator = learner.spec, stream(0, "export")
    given = {"obs": torch.randn(PROBES, spec.n_agents, spec.obs_dim, generator=generator)}
    if spec.discrete:
        legal = torch.rand(PROBES, spec.n_agents, spec.action_dim, generator=generator) < 0.7
        legal[..., 0] = True
        given["legal"] = legal
    if learner.memory_dim:
        given["memory"] = torch.rand(PROBES, spec.n_agents, learner.memory_dim, generator=generator) * 2 - 1
    return given


def _inputs(learner: ObservingLearner) -> dict[str, Any]:
    """Describe what the files take, in this order; B is any number of frames. Zeros are the memory of nothing."""
    return {
        name: {"shape": ["B", *values.shape[1:]], "type": str(values.dtype).removeprefix("torch.")}
        for name, values in probes(learner).items()
    }


def _answer(policy: Callable[..., Any], given: Given) -> Answer:
    answer = policy(*given.values())
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


@torch.no_grad()
def _run_acts(learner: ObservingLearner, index: int, given: Given) -> Answer:
    """What the run itself does, without the dimensions that an agent does not have."""
    everyone = {name: values.expand(len(learner.seeds), *values.shape) for name, values in given.items()}
    if learner.memory_dim:
        action, memory = learner.step(everyone["obs"], everyone["legal"], everyone["memory"])
        return action[index], memory[index]
    action = learner.act(everyone["obs"], everyone.get("legal"))
    if learner.spec.discrete:
        return (action[index],)
    widths = torch.tensor([len(names) for names in learner.spec.action_names])
    return (action[index] * (torch.arange(learner.spec.action_dim) < widths.unsqueeze(1)),)


def _require_same(expected: Answer, found: Answer, what: str) -> None:
    """Compare numbers to `TOLERANCE`; choices may differ where two are equally good, once in 64."""
    for mine, theirs in zip(expected, found, strict=True):
        if mine.shape != theirs.shape:
            raise OffmarlError(
                f"nothing was exported: {what} (shapes {list(theirs.shape)}, not {list(mine.shape)})"
            )
        if mine.is_floating_point():
            difference = float((mine - theirs).abs().max())
            same = difference <= TOLERANCE
        else:
            difference = float((mine != theirs).float().mean())
            same = difference <= 1 / PROBES
        if not same:
            raise OffmarlError(f"nothing was exported: {what} (difference {difference:.2g})")


def _require_replaceable(out: Path, overwrite: bool) -> None:
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: give a folder")
    if out.resolve() == Path.cwd():
        raise UsageError(
            f"--out {out}: the folder is replaced as a whole, so take one inside the current folder"
        )
    if not any(out.iterdir()):
        return
    if not (out / ABOUT).exists():
        raise UsageError(f"{out} holds files that are no exported policy: choose another folder")
    if not overwrite:
        raise UsageError(f"{out} holds a policy already: --overwrite replaces it")


def _write_tensors(module: nn.Module, path: Path, run: RunFolder) -> dict[str, list[int]]:
    if not isinstance(module, Policy):
        raise UsageError(
            f"the networks of {run.record['learner']} are not this package's own: export them with "
            "--format torchscript"
        )
    tensors = {name: tensor.detach().contiguous() for name, tensor in module.tensors().items()}
    write_tensors(path, tensors, {"format": FORMAT})
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _write_torchscript(module: nn.Module, path: Path, given: Given) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # deprecated in favour of torch.export, which cannot yet be run without Python
        traced = torch.jit.trace(module, tuple(given.values()), check_trace=False)
        # Written by PyTorch itself, a full disk would end the process.
        content = BytesIO()
        torch.jit.save(torch.jit.freeze(traced), content)
    path.write_bytes(content.getvalue())


def _write_onnx(module: nn.Module, path: Path, given: Given) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f'--format onnx needs onnx, onnxscript and onnxruntime ({error}): pip install "offmarl[onnx]"'
        ) from error
    frames = torch.export.Dim("frames", min=1)
    with warnings.catch_warnings(), torch.no_grad(), _without_argument_checks():
        warnings.simplefilter("ignore")
        # It tells, at every export, that torchvision's operations cannot be written.
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                module,
                tuple(given.values()),
                dynamo=True,
                opset_version=ONNX_OPSET,
                input_names=list(given),
                output_names=["action", "next_memory"] if "memory" in given else ["action"],
                dynamic_shapes=[{0: frames}] * len(given),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise OffmarlError(
                "PyTorch cannot write this policy as ONNX: use --format torchscript"
            ) from error
    assert program is not None
    program.save(str(path), external_data=False)


@contextmanager
def _without_argument_checks() -> Iterator[None]:
    """Let distributions not look at their arguments: a graph cannot branch on values."""
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(__debug__)  # PyTorch's default


def _runner(form: str, folder: Path) -> Runner:
    """Load what was written as its reader will."""
    path = folder / FILES[form]
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(given: Given) -> Answer:
            arrays = {name: values.numpy() for name, values in given.items()}
            return tuple(torch.from_numpy(values) for values in session.run(None, arrays))

        return run
    if form == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            script = torch.jit.load(str(path))
        return lambda given: _answer(script, given)
    policy = load_policy(folder)
    return lambda given: _answer(policy, given)
