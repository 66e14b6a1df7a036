"""The settings of d3rlpy's algorithms: which there are, what each can be told, and telling it.

d3rlpy itself says which algorithms it has and which settings they take, so that a later version's are known here too.
"""

import io
from contextlib import redirect_stderr
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from offmarl.errors import UsageError, unknown_name
from offmarl.learners.base import ObservingConfig
from offmarl.settings import Count, Discount, Fraction, Hidden, NonNegative, Positive, Share, UpToOne

PREFIX = "d3rlpy:"

# Settings of d3rlpy that have their own place here: train.batch_size, normalise_observations, standardise_rewards.
# Actions are in [-1, 1] already. Captured CUDA graphs would fix what is random.
ELSEWHERE = ("batch_size", "observation_scaler", "action_scaler", "reward_scaler", "compile_graph")

# Parameters of its factories that d3rlpy does not check.
SIZES: dict[str, Any] = {
    "hidden_units": Hidden,
    "n_quantiles": Count,
    "n_greedy_quantiles": Count,
    "embed_size": Count,
}


@dataclass
class D3rlpyConfig(ObservingConfig):
    """What every algorithm of d3rlpy can be told; its own settings stand beside these, under d3rlpy's names.

    Factories are given as d3rlpy writes them into JSON: `{type: qr, params: {n_quantiles: 32}}`.
    """

    # Of every encoder without a factory of its own; d3rlpy's default.
    hidden: Hidden = (256, 256)
    # Replaces all of the algorithm's learning rates; null: each its own.
    learning_rate: Positive | None = None  # type: ignore[assignment]
    gradient_clip: Positive | None = None  # of every optimiser without a factory of its own
    standardise_rewards: bool = True  # as the own learners do, see ValueConfig
    centre_rewards: bool = True
    reward_sd: Positive = 1.0


def d3rlpy_algorithm(name: str, action_type: str) -> type[Any]:
    """Find d3rlpy's config class of `d3rlpy:<algorithm>` for "continuous" or "discrete" actions.

    Raises `UsageError` where d3rlpy is not installed, for an unknown name (with near ones), and for an algorithm
    that needs what a batch of transitions does not hold.
    """
    wanted = name.removeprefix(PREFIX)
    algorithms = _algorithms()
    if wanted not in {known for known, _ in algorithms}:
        raise unknown_name("d3rlpy algorithm", wanted, _usable(action_type))
    problem = next((why for (known, _), (_, why) in algorithms.items() if known == wanted and why), None)
    if problem is not None:
        raise UsageError(f"learner '{name}' {problem}; those that can be trained: {_listed(action_type)}")
    if (wanted, action_type) not in algorithms:
        raise UsageError(
            f"learner '{name}' has no {action_type} actions, which this dataset has; those that do: "
            f"{_listed(action_type)}"
        )
    return algorithms[wanted, action_type][0]


def _imported() -> Any:
    """Import d3rlpy without the notice that its dependency prints."""
    try:
        with redirect_stderr(io.StringIO()):
            import d3rlpy
    except ImportError as error:
        raise UsageError(
            f'this learner needs d3rlpy, which cannot be imported ({error}): pip install "offmarl[d3rlpy]"'
        ) from error
    return d3rlpy


@cache
def _algorithms() -> dict[tuple[str, str], tuple[type[Any], str | None]]:
    """Ask d3rlpy for its algorithms: (name, action type) -> config class, and why it cannot be used (None: can)."""
    d3rlpy = _imported()
    from d3rlpy.algos import QLearningAlgoBase
    from d3rlpy.base import LearnableConfig
    from d3rlpy.constants import ActionSpace
    from d3rlpy.serializable_config import CONFIG_STORAGE

    found = {}
    for registered, config_class in CONFIG_STORAGE[LearnableConfig].config_list.items():
        if not hasattr(d3rlpy.algos, config_class.__name__):
            continue  # off-policy evaluation, no learner of policies
        algorithm = config_class().create()
        discrete = algorithm.get_action_type() is ActionSpace.DISCRETE
        why = None
        if not isinstance(algorithm, QLearningAlgoBase):
            why = "acts on a window of past steps, and policies here act on what is seen now"
        elif algorithm.need_returns_to_go:
            why = "needs the return that followed each transition, which a batch of transitions does not hold"
        elif not any(made.name.endswith("learning_rate") for made in fields(config_class)):
            why = "learns nothing"  # random_policy
        found[registered.removeprefix("discrete_"), "discrete" if discrete else "continuous"] = (
            config_class,
            why,
        )
    return found


def _usable(action_type: str) -> list[str]:
    """List the names that can be trained on this kind of action."""
    return sorted(
        known for (known, kind), (_, why) in _algorithms().items() if kind == action_type and not why
    )


def _listed(action_type: str) -> str:
    return ", ".join(PREFIX + known for known in _usable(action_type))


def settings_class(name: str, action_type: str, d3rlpy_config: type[Any]) -> type[D3rlpyConfig]:
    """Make the config of one algorithm: `D3rlpyConfig`, and d3rlpy's own settings with their defaults."""
    settings: list[Any] = []
    for known in fields(d3rlpy_config):
        if known.name in ELSEWHERE:
            continue
        if _is_factory(known):
            settings.append((known.name, dict[str, Any] | None, field(default=None)))
        else:
            settings.append((known.name, _bounded(known, name), field(default=known.default)))
    title = "".join(part.capitalize() for part in (action_type, *name.split("_")))
    return make_dataclass(
        f"{title}D3rlpyConfig", settings, bases=(D3rlpyConfig,), namespace={"__doc__": d3rlpy_config.__doc__}
    )


def _bounded(known: Any, algorithm: str) -> Any:
    """The type of one of d3rlpy's settings, within the bounds that d3rlpy itself does not check."""
    if known.name == "gamma":
        return Discount
    if known.name == "tau":
        return Fraction
    if known.name == "expectile":
        return Share
    if known.name == "lam":  # AWAC's temperature; elsewhere the weight of the smaller of the critics
        return Positive if algorithm == "awac" else UpToOne
    if known.name in ("initial_temperature", "initial_alpha"):  # their logarithm is learnt
        return Positive
    if known.name.endswith("learning_rate"):  # of a temperature or a multiplier: 0 leaves it as it is
        return NonNegative if known.name.startswith(("alpha", "temp")) else Positive
    if known.type is int and (known.name.startswith("n_") or known.name.endswith("_interval")):
        return Count
    return known.type


def told_to_d3rlpy(config: D3rlpyConfig, d3rlpy_config: type[Any]) -> Any:
    """Turn our settings into d3rlpy's config. Raises `UsageError` for a factory that d3rlpy does not know."""
    from d3rlpy.models.encoders import EncoderFactory, VectorEncoderFactory
    from d3rlpy.optimizers import OptimizerFactory

    values: dict[str, Any] = {}
    for known in fields(d3rlpy_config):
        if known.name in ELSEWHERE:
            continue
        value = getattr(config, known.name)
        if known.name.endswith("learning_rate") and config.learning_rate is not None:
            value = config.learning_rate
        elif _is_factory(known):
            usual = cast(Any, known).default_factory()
            if value is not None:
                value = _factory(known.name, value, usual)
            elif isinstance(usual, EncoderFactory):
                value = VectorEncoderFactory(hidden_units=list(config.hidden))
            elif isinstance(usual, OptimizerFactory):
                value = replace(usual, clip_grad_norm=config.gradient_clip)
            else:
                value = usual
            if getattr(value, "lr_scheduler_factory", None) is not None:
                raise UsageError(
                    f"learner.{known.name}: schedules of the learning rate are not kept in checkpoints, so a "
                    "resumed run would differ: leave lr_scheduler_factory out"
                )
        values[known.name] = value
    return d3rlpy_config(**values)


def _is_factory(known: Any) -> bool:
    """Whether d3rlpy's setting is an object with settings of its own."""
    return "dataclasses_json" in known.metadata


def _factory(name: str, given: dict[str, Any], usual: Any) -> Any:
    """Build a factory of d3rlpy from its JSON form. Raises `UsageError` for unknown types and parameters."""
    from d3rlpy.serializable_config import CONFIG_STORAGE

    family = next(base for base in CONFIG_STORAGE if isinstance(usual, base))
    known = CONFIG_STORAGE[family].config_list
    for key in given:
        if key not in ("type", "params"):
            raise UsageError(
                f"learner.{name}: '{key}' is not known: expected {{type: NAME, params: {{...}}}}"
            )
    kind, parameters = given.get("type", usual.get_type()), given.get("params") or {}
    if not isinstance(parameters, dict):
        raise UsageError(f"learner.{name}: params={parameters!r}: expected {{NAME: VALUE, ...}}")
    if not isinstance(kind, str) or kind not in known:
        raise unknown_name(f"type of learner.{name}", str(kind), known)
    names = [part.name for part in fields(known[kind])]
    for parameter in parameters:
        if parameter not in names:
            raise unknown_name(f"parameter of learner.{name}", parameter, names)
    for parameter in parameters.keys() & SIZES:
        try:
            TypeAdapter(SIZES[parameter]).validate_python(parameters[parameter])
        except ValidationError as error:
            raise UsageError(
                f"learner.{name}: {parameter}={parameters[parameter]!r}: {error.errors()[0]['msg']}"
            ) from error
    try:
        return known[kind].deserialize_from_dict(parameters)
    except (TypeError, ValueError, KeyError) as error:
        raise UsageError(f"learner.{name}={given}: d3rlpy cannot read this ({error})") from error
