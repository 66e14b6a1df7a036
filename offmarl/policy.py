"""Trained policies on their own: what `offmarl export` writes, loaded with nothing but PyTorch and safetensors.

```python
from offmarl.policy import load_policy
policy = load_policy("exported")
action = policy(obs)
```

A policy with a memory (a `RecurrentPolicy`) starts an episode with `memory = policy.begin(frames)` and goes on with
`action, memory = policy(obs, legal, memory)`.

Shapes: B frames, N agents, O observation (zero-padded to the widest agent's), A action dimensions or choices, H memory.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from offmarl.errors import DataError
from offmarl.stored_json import read_object

FORMAT = "offmarl policy 1"
ABOUT = "policy.json"
FILES = {"offmarl": "policy.safetensors", "torchscript": "policy.pt", "onnx": "policy.onnx"}

# Beyond ten standard deviations an observation says no more than "far out"; unclipped, one dimension that
# hardly varies in the data drowns the others when it does vary.
OBSERVATION_LIMIT = 10.0


class Policy(nn.Module):
    """The greedy policies of N agents: normaliser, perceptron, and tanh or the best legal choice.

    `tensors`: obs_mean and obs_scale [N, O], used [N, A] bool (an agent's own dimensions or choices), and for each
    layer k from 0 `k.weight` [N, inputs, outputs] and `k.bias` [N, outputs].
    """

    others: tuple[str, ...] = ()  # layers beside the numbered ones

    def __init__(
        self, tensors: dict[str, Tensor], discrete: bool, about: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.discrete = discrete
        self.about = about or {}  # content of policy.json
        self.layers = sum(name.endswith(".weight") for name in tensors) - len(self.others)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Give what the constructor took."""
        names = ["obs_mean", "obs_scale", "used"]
        layers = (*range(self.layers), *self.others)
        names += [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        return {name: self.get_buffer(name.replace(".", "_")) for name in names}

    def forward(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """[B, N, O] -> [B, N, A] in [-1, 1], or with `legal` [B, N, A] bool (None: all) -> [B, N] int64.

        Without the leading axis of `obs` the answer has none either.
        """
        if obs.dim() == 2:
            return self.forward(obs.unsqueeze(0), None if legal is None else legal.unsqueeze(0)).squeeze(0)
        hidden = self.normalised(obs)
        for layer in range(self.layers):
            hidden = self.linear(str(layer), hidden)
            if layer < self.layers - 1:
                hidden = torch.relu(hidden)
        output = hidden.transpose(0, 1)  # [B, N, A]
        return self.best(output, legal) if self.discrete else torch.tanh(output) * self.get_buffer("used")

    def normalised(self, obs: Tensor) -> Tensor:
        """[B, N, O] -> network input [N, B, O]."""
        mean, scale = self.get_buffer("obs_mean"), self.get_buffer("obs_scale")
        scaled = ((obs.to(mean.dtype) - mean) * scale).clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        return scaled.transpose(0, 1)

    def linear(self, name: str, rows: Tensor) -> Tensor:
        """[N, B, inputs] -> [N, B, outputs]."""
        return torch.bmm(rows, self.get_buffer(f"{name}_weight")) + self.get_buffer(f"{name}_bias").unsqueeze(
            1
        )

    def best(self, scores: Tensor, legal: Tensor | None) -> Tensor:
        """[B, N, A] -> the best of the allowed choices [B, N]."""
        used = self.get_buffer("used")
        allowed = used if legal is None else used & legal
        return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).argmax(-1)


class RecurrentPolicy(Policy):
    """Greedy policies with a memory: ReLU layers, a gated recurrent unit, a linear layer.

    `tensors` as of `Policy`, of the layers `0`, `1`, ... before the unit, its two, `input` and `memory` (gates: reset,
    update, new), and `head`.
    """

    others = ("input", "memory", "head")

    def begin(self, frames: int) -> Tensor:
        """Give the memory [B, N, H] with which episodes begin."""
        weight = self.get_buffer("memory_weight")  # [N, H, 3H]
        return weight.new_zeros(frames, *weight.shape[:2])

    def forward(  # type: ignore[override]
        self, obs: Tensor, legal: Tensor | None, memory: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[B, N, O], [B, N, A] bool (None: all), [B, N, H] -> choices [B, N] int64 and the next memory.

        Without the leading axis of `obs` and of the others the answers have none either.
        """
        if obs.dim() == 2:
            frame = None if legal is None else legal.unsqueeze(0)
            action, memory = self.forward(obs.unsqueeze(0), frame, memory.unsqueeze(0))
            return action.squeeze(0), memory.squeeze(0)
        hidden, before = self.normalised(obs), memory.transpose(0, 1)  # [N, B, .]
        for layer in range(self.layers):
            hidden = torch.relu(self.linear(str(layer), hidden))
        given, own = (
            self.linear("input", hidden).chunk(3, dim=2),
            self.linear("memory", before).chunk(3, dim=2),
        )
        reset, update = torch.sigmoid(given[0] + own[0]), torch.sigmoid(given[1] + own[1])
        new = torch.tanh(given[2] + reset * own[2])
        after = new + update * (before - new)
        scores = self.linear("head", after).transpose(0, 1)
        return self.best(scores, legal), after.transpose(0, 1)


def policy_of(tensors: dict[str, Tensor], discrete: bool, about: dict[str, Any] | None = None) -> Policy:
    """Build the kind of policy that `tensors` are of."""
    kind = RecurrentPolicy if "memory.weight" in tensors else Policy
    return kind(tensors, discrete, about)


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> Policy:
    """Load what `offmarl export --format offmarl` wrote.

    Raises `DataError` for a folder that holds no policy, one of another format, or a damaged one.
    """
    folder = Path(folder)
    about = read_about(folder)
    path = folder / FILES["offmarl"]
    if about["file"] != path.name:
        raise DataError(f"{folder} holds {about['file']}: {about['load']}")
    try:
        tensors = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    listed = about.get("tensors")
    expected = {name: tuple(shape) for name, shape in listed.items()} if isinstance(listed, dict) else {}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise DataError(f"{path} does not hold the tensors that {ABOUT} lists: export again")
    return policy_of(tensors, about["action_type"] == "discrete", about).requires_grad_(False).eval()


def read_about(folder: Path) -> dict[str, Any]:
    """Read policy.json. Raises `DataError` if there is none or it is something else."""
    path = folder / ABOUT
    about = read_object(path, "exported policy", "exported policy")
    if about.get("format") != FORMAT:
        raise DataError(f"{path} is no exported policy: its format is {about.get('format')!r}")
    for name in ("file", "load", "action_type"):
        if not isinstance(about.get(name), str):
            raise DataError(f"{path} is damaged: field '{name}' is {about.get(name)!r}; export again")
    return about
