"""Trained policies on their own: what `offmarl export` writes, loaded with nothing but PyTorch and safetensors.

```python
from offmarl.policy import load_policy
policy = load_policy("exported")
action = policy(obs)
```

Shapes: B frames, N agents, O observation (zero-padded to the widest agent's), A action dimensions or choices.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from offmarl.errors import DataError

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

    def __init__(
        self, tensors: dict[str, Tensor], discrete: bool, about: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.discrete = discrete
        self.about = about or {}  # content of policy.json
        self.layers = sum(name.endswith(".weight") for name in tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def tensors(self) -> dict[str, Tensor]:
        """Give what the constructor took."""
        names = ["obs_mean", "obs_scale", "used"]
        names += [f"{layer}.{part}" for layer in range(self.layers) for part in ("weight", "bias")]
        return {name: self.get_buffer(name.replace(".", "_")) for name in names}

    def forward(self, obs: Tensor, legal: Tensor | None = None) -> Tensor:
        """[B, N, O] -> [B, N, A] in [-1, 1], or with `legal` [B, N, A] bool (None: all) -> [B, N] int64.

        Without the leading axis of `obs` the answer has none either.
        """
        if obs.dim() == 2:
            return self.forward(obs.unsqueeze(0), None if legal is None else legal.unsqueeze(0)).squeeze(0)
        mean, scale = self.get_buffer("obs_mean"), self.get_buffer("obs_scale")
        hidden = ((obs.to(mean.dtype) - mean) * scale).clamp(-OBSERVATION_LIMIT, OBSERVATION_LIMIT)
        hidden = hidden.transpose(0, 1)  # [N, B, O]
        for layer in range(self.layers):
            weight, bias = self.get_buffer(f"{layer}_weight"), self.get_buffer(f"{layer}_bias")
            hidden = torch.bmm(hidden, weight) + bias.unsqueeze(1)
            if layer < self.layers - 1:
                hidden = torch.relu(hidden)
        output, used = hidden.transpose(0, 1), self.get_buffer("used")  # [B, N, A]
        if not self.discrete:
            return torch.tanh(output) * used
        allowed = used if legal is None else used & legal
        return output.masked_fill(~allowed, torch.finfo(output.dtype).min).argmax(-1)


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
    expected = {name: tuple(shape) for name, shape in about["tensors"].items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        raise DataError(f"{path} does not hold the tensors that {ABOUT} lists: export again")
    return Policy(tensors, about["action_type"] == "discrete", about).requires_grad_(False).eval()


def read_about(folder: Path) -> dict[str, Any]:
    """Read policy.json. Raises `DataError` if there is none or it is something else."""
    path = folder / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is no exported policy: it has no {ABOUT}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else type(about).__name__
        raise DataError(f"{path} is no exported policy: its format is {found!r}")
    return about
