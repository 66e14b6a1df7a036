"""Policies of background agents: a small network loaded from a file, scripted ones, and chance.

Shapes: E copies, P background agents of one side, O observation.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from offmarl.errors import DataError, UsageError, unknown_name

Opponent = Callable[[Tensor], Tensor]  # observations [E, P, O] -> forces [E, P, 2] in [-1, 1]


def refuse_opponent(env_id: str, opponent: object) -> None:
    """Raise `UsageError` where somebody gives an opponent to a task without background agents."""
    if opponent is not None:
        raise UsageError(f"{env_id}: every agent learns here, there is no opponent to replace")


_FOLDER = Path(__file__).parent


class NetworkPolicy:
    """A multi-layer perceptron, ReLU inside and tanh at the end, shared by the agents of a side.

    On disk: safetensors with `layer_0.weight` [hidden, O], `layer_0.bias` [hidden], `layer_1.weight`, ...
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]]):
        self.layers = list(layers)

    @classmethod
    def load(cls, path: Path, device: torch.device | str, dtype: torch.dtype) -> "NetworkPolicy":
        """Read the weights. Raises `DataError` where the file is not such a network."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: not a readable safetensors file ({error})") from error
        depth = len(tensors) // 2
        expected = {f"layer_{k}.{part}" for k in range(depth) for part in ("weight", "bias")}
        if not depth or set(tensors) != expected:
            raise DataError(
                f"{path}: expected tensors layer_0.weight, layer_0.bias, layer_1.weight, ...; "
                f"found {sorted(tensors)}"
            )
        layers = [
            (tensors[f"layer_{k}.weight"].to(device, dtype), tensors[f"layer_{k}.bias"].to(device, dtype))
            for k in range(depth)
        ]
        inputs = layers[0][0].shape[-1:]
        for k, (weight, bias) in enumerate(layers):
            outputs = weight.shape[:1]
            if weight.dim() != 2 or weight.shape != outputs + inputs or bias.shape != outputs:
                raise DataError(
                    f"{path}: layer_{k} has weights {list(weight.shape)} and biases {list(bias.shape)}, which do not "
                    "make a network"
                )
            inputs = outputs
        return cls(layers)

    def save(self, path: Path) -> None:
        """Write the weights in float32."""
        from safetensors.torch import save_file

        tensors = {}
        for k, (weight, bias) in enumerate(self.layers):
            tensors[f"layer_{k}.weight"] = weight.detach().float().cpu().contiguous()
            tensors[f"layer_{k}.bias"] = bias.detach().float().cpu().contiguous()
        save_file(tensors, path)

    @property
    def obs_dim(self) -> int:
        """Width of the observation that the first layer reads."""
        return self.layers[0][0].shape[1]

    @property
    def action_dim(self) -> int:
        """Numbers that the last layer gives."""
        return self.layers[-1][0].shape[0]

    def require_fits(self, title: str, observed: int, actions: int, instead: str) -> None:
        """Raise `UsageError`, which calls it `title`, unless it maps `observed` numbers to `actions`."""
        if (self.obs_dim, self.action_dim) != (observed, actions):
            raise UsageError(
                f"{title}: it observes {self.obs_dim} numbers and gives {self.action_dim}, in this task {observed} and "
                f"{actions} (was it trained with other numbers of agents?); choose another policy, "
                f"for example '{instead}'"
            )

    @torch.no_grad()
    def __call__(self, obs: Tensor) -> Tensor:
        """[E, P, O] -> [E, P, actions]."""
        hidden = obs.flatten(0, 1)
        for weight, bias in self.layers[:-1]:
            hidden = torch.addmm(bias, hidden, weight.t()).relu_()
        weight, bias = self.layers[-1]
        return torch.addmm(bias, hidden, weight.t()).tanh_().view(*obs.shape[:2], -1)


class Flee:
    """Run from whoever hunts, the nearer the more, and turn back near the edge of the world, at ±`arena`.

    A hunter out of sight, observed as an offset of exactly zero, is ignored.
    """

    def __init__(
        self,
        obs_names: Sequence[str],
        hunters: Sequence[str],
        device: torch.device | str = "cpu",
        arena: float = 1.0,
    ):
        self._arena = arena
        self._hunters = _columns(obs_names, hunters, "relative").to(device)
        self._position = list(obs_names).index("position_x")

    def __call__(self, obs: Tensor) -> Tensor:
        """[E, P, O] -> [E, P, 2], of length one at most."""
        offset = obs[..., self._hunters].unflatten(-1, (-1, 2))  # [E, P, hunters, 2]
        away = -(offset / offset.square().sum(-1, keepdim=True).clamp_min(1e-6)).sum(-2)
        position = obs[..., self._position : self._position + 2] / self._arena
        away = away - 1.5 * position * (position.abs() > 0.8)
        return away / (torch.linalg.vector_norm(away, dim=-1, keepdim=True) + 1e-6)


class Chase:
    """Steer at where the nearest prey is going to be."""

    def __init__(self, obs_names: Sequence[str], prey: Sequence[str], device: torch.device | str = "cpu"):
        self._offset = _columns(obs_names, prey, "relative").to(device)
        self._velocity = _columns(obs_names, prey, "velocity").to(device)

    def __call__(self, obs: Tensor) -> Tensor:
        """[E, P, O] -> [E, P, 2]."""
        offset = obs[..., self._offset].unflatten(-1, (-1, 2))  # [E, P, prey, 2]
        velocity = obs[..., self._velocity].unflatten(-1, (-1, 2))
        nearest = offset.square().sum(-1).argmin(-1)[..., None, None].expand(*obs.shape[:2], 1, 2)
        aim = (offset + 0.2 * velocity).gather(-2, nearest).squeeze(-2)
        return (3 * aim).clamp(-1, 1)


class Chance:
    """Uniformly random forces."""

    def __init__(self, generator: torch.Generator):
        self._generator = generator

    def __call__(self, obs: Tensor) -> Tensor:
        """[E, P, O] -> [E, P, 2]."""
        drawn = torch.rand(*obs.shape[:2], 2, generator=self._generator, device=obs.device, dtype=obs.dtype)
        return 2 * drawn - 1


def _columns(obs_names: Sequence[str], entities: Sequence[str], quantity: str) -> Tensor:
    """Columns of the x and y of a quantity of each entity, in order."""
    return torch.tensor(
        [list(obs_names).index(f"{name}.{quantity}_{axis}") for name in entities for axis in "xy"]
    )


def shipped_weights(env_id: str, side: str) -> Path:
    """Where the weights of a task's shipped opponent lie, for example `mpe_tag.prey.safetensors`."""
    return _FOLDER / f"{env_id}.{side}.safetensors"


def make_opponent(
    name: str,
    *,
    env_id: str,
    side: str,
    obs_names: Sequence[str],
    targets: Sequence[str],
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    arena: float = 1.0,
) -> Opponent:
    """The policy called `name`: trained, random, a script (`flee` for prey, `chase` for predators) or a file.

    `obs_names` is what an agent of this side observes, `targets` names the other side's agents, `arena` is half the
    side of the square that is theirs. Raises
    `UsageError` for a name that does not exist, `DataError` for a file that does not fit.
    """
    if name == "random":
        return Chance(generator)
    if name == "flee" and side == "prey":
        return Flee(obs_names, targets, generator.device, arena)
    if name == "chase" and side == "predators":
        return Chase(obs_names, targets, generator.device)

    path = shipped_weights(env_id, side) if name == "trained" else Path(name).expanduser()
    script = "flee" if side == "prey" else "chase"
    if name != "trained" and path.suffix != ".safetensors":
        raise unknown_name(f"policy of the {side}", name, ["trained", script, "random", "FILE.safetensors"])
    if not path.is_file():
        raise UsageError(
            f"{env_id}: no weights of the {side} at {path}; choose another policy, for example '{script}'"
        )
    policy = NetworkPolicy.load(path, generator.device, dtype)
    policy.require_fits(f"{env_id}: policy of the {side}, {path.name}", len(obs_names), 2, instead=script)
    return policy
