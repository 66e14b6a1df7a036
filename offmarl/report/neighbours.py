"""How much each neighbour counts for one unit of a map, frame by frame (Ma et al. 2025, figure 9).

Shapes: F frames, D state, M units that move, B bodies of a scene.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import renderers
from offmarl.errors import UsageError, unknown_name
from offmarl.learners.base import Learner
from offmarl.learners.meanfield.base import MeanFieldLearner
from offmarl.report.scene import Scene

AROUND = 3  # cells shown beyond the distance at which units are neighbours
BODY_RADIUS = 0.42  # cells
_BLOCK = 16  # frames whose weights are computed at once


@dataclass(frozen=True)
class NeighbourWeights:
    """What one unit makes of its neighbours."""

    unit: int  # position among the bodies
    weight: np.ndarray  # [F, B], NaN for who is no neighbour

    @property
    def most(self) -> float:
        """The largest weight of all frames; 1 where there is none."""
        return float(np.nanmax(self.weight)) if np.isfinite(self.weight).any() else 1.0


def require_weights(learner: Learner, spec: EnvSpec, unit: str) -> MeanFieldLearner:
    """The learner of `unit`'s weights. Raises `UsageError` where it weighs nobody, or there is no such unit."""
    if not isinstance(learner, MeanFieldLearner) or not learner.looks_around:
        raise UsageError(
            "--weights: this policy looks at no neighbours; those of cmfq, mfq, attention_mfq do"
        )
    if learner.draws_weights:
        raise UsageError(
            "--weights: this policy draws its weights anew whenever a unit looks: there are none to show"
        )
    if unit not in spec.agents:
        raise unknown_name("agent of --weights", unit, spec.agents)
    return learner


@torch.no_grad()
def neighbour_weights(
    learner: Learner, spec: EnvSpec, unit: str, state: torch.Tensor, shown: Scene
) -> NeighbourWeights:
    """Weights of the neighbours of `unit` in the states [F, D]. Raises `UsageError` like `require_weights`."""
    first_seed = require_weights(learner, spec, unit).of_seed(0)
    side, _, number = unit.rpartition("_")
    renderer = renderers(spec)[side]
    own = int(number)
    parts = []
    for block in state.to(first_seed.device, torch.float32).split(_BLOCK):
        near, weight = first_seed.weights(block.unsqueeze(0), renderer)  # [1, F, n, M]
        parts.append(torch.where(near[0, :, own], weight[0, :, own], torch.nan).cpu())
    known = torch.cat(parts).numpy()  # [F, M]
    bodies = {body.name: index for index, body in enumerate(shown.bodies)}
    weight_of_body = np.full(shown.position.shape[:2], np.nan)
    for column, name in enumerate(renderer.grid.unit_names()[: renderer.grid.movers]):
        weight_of_body[:, bodies[name]] = known[:, column]
    return NeighbourWeights(bodies[unit], weight_of_body)


def around(shown: Scene, unit: int, spec: EnvSpec) -> Scene:
    """The part of the map that a unit stands in the middle of; where it dies, the view stays."""
    group = renderers(spec)[spec.agents[0].rpartition("_")[0]]
    reach = group.kind.view_radius + AROUND
    middle = shown.position[:, unit].copy()  # [F, 2]
    for frame in range(1, len(middle)):
        if not np.isfinite(middle[frame]).all():
            middle[frame] = middle[frame - 1]
    position = shown.position - middle[:, None]
    position[(np.abs(position) > reach).any(-1)] = np.nan
    bodies = tuple(replace(body, radius=BODY_RADIUS) for body in shown.bodies)
    return Scene(bodies, position)
