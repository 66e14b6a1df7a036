"""What learners of many agents share: batches of single units, one network for all of a kind, acting on any map.

Mean-field Q-learning (Yang et al. 2018) writes a unit's value as Q(s, a, ã): its own view, its own choice, and a
merged neighbour ã, an average of what its neighbours did last. How that average weighs them is all that the learners
of this family differ in. Nothing depends on how many units there are or on which side one stands, so that what was
learnt acts for either side, and for more units than it was trained with.
Shapes: S seeds, B units of a batch, E copies, n units of a group, M units that move, D state, O inputs, A actions of
neighbours, K choices, H hidden.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy as copy_of
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from offmarl.data.units import UnitBatch, UnitStatistics
from offmarl.envs.base import EnvSpec
from offmarl.envs.magent_render import Renderer, Scope, renderers, scene
from offmarl.errors import UsageError
from offmarl.learners.base import Learner, LearnerConfig, Metrics
from offmarl.learners.meanfield.network import ConvolutionalNetwork, MeanFieldNetwork
from offmarl.learners.meanfield.seen import Seen, inputs_of, neighbours_of, sample_of
from offmarl.learners.optimiser import StackedAdam
from offmarl.settings import Hidden, Positive


@dataclass
class MeanFieldConfig(LearnerConfig):
    """Settings of every learner of this family."""

    hidden: Hidden = (128,)  # of the trunk; the last also of the head
    learning_rate: Positive = 5e-4  # learns battles of 64 v 64 in a minute of one core; MFQ's code: 1e-4
    gradient_clip: Positive | None = 10.0  # norm; dueling networks (Wang et al. 2016)
    trunk: Literal["mlp", "conv"] = "mlp"  # MFQ's code convolves the view
    scope: Scope = "own"  # whose actions are averaged: team-mates' (the paper's figure 9), or enemies' too
    radius: Positive | None = None  # cells within which a neighbour is near; null: the view's


class Source(Protocol):
    """Where batches of units of one group come from: a dataset's rows, or a replay of what is being played."""

    @property
    def renderer(self) -> Renderer:
        """The eyes of the group."""

    def sample(self, batch_size: int, generators: Sequence[torch.Generator]) -> UnitBatch:
        """Draw `batch_size` units for each seed, from its own generator."""


@dataclass(frozen=True)
class Experience:
    """What units of one kind went through in a step."""

    now: Seen  # [S, B, ...]
    action: Tensor  # [S, B] int64
    reward: Tensor  # [S, B]
    next: Seen
    going_on: Tensor  # [S, B] float: 0 where the unit died or the game was decided


class MeanFieldLearner(Learner):
    """One network for all units of a kind: both armies of a battle share one, predators and prey have one each."""

    action_type = "discrete"
    batch_unit = "units"
    looks_around: ClassVar[bool] = True  # whether values depend on neighbours
    draws_weights: ClassVar[bool] = False  # whether their weights are drawn at random
    network_name: ClassVar[str]  # what the acting network is called in a checkpoint
    trunks: ClassVar[Mapping[str, type[MeanFieldNetwork]]] = {
        "mlp": MeanFieldNetwork,
        "conv": ConvolutionalNetwork,
    }

    def __init__(
        self, spec: EnvSpec, config: MeanFieldConfig, seeds: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        if not self.looks_around and (config.scope != "own" or config.radius is not None):
            raise UsageError(
                "this learner looks at no neighbours: learner.scope and learner.radius go with mfq or cmfq"
            )
        super().__init__(spec, config, seeds, device)
        self.config = config
        self.actors: dict[str, MeanFieldNetwork] = {}  # by the kind of unit
        self.optimisers: dict[str, StackedAdam[MeanFieldNetwork]] = {}
        for renderer in renderers(spec).values():
            kind = renderer.kind.name
            if kind not in self.actors:
                name = f"{self.network_name}.{kind}"
                network = self.stacked(self.trunks[config.trunk], name, self.sizes(renderer))
                adam: StackedAdam[Any] = StackedAdam(network, config.learning_rate, config.gradient_clip)
                self.actors[kind] = network
                self.optimisers[kind] = self.keep(f"optimiser.{kind}", adam)

    def sizes(self, renderer: Renderer) -> tuple[int, ...]:
        """Size the network of a kind, as `network.Sizes` says."""
        grid = renderer.grid
        features = renderer.features_dim - grid.id_bits
        actions = renderer.choices if self.looks_around else 0
        choices = len(renderer.kind.actions)
        return (renderer.side, grid.channels, features, *self.config.hidden, actions, choices)

    def require_known(self, renderer: Renderer) -> None:
        """Raise `UsageError` for a kind of unit, or a view of it, that no network here is for."""
        kind, group = renderer.kind.name, renderer.name
        if kind not in self.actors:
            raise UsageError(
                f"{group} of {renderer.grid.task} is of a kind that was not trained: this learner knows "
                f"{', '.join(self.actors)} of {self.spec.id}"
            )
        if self.sizes(renderer) != self.actors[kind].sizes:
            raise UsageError(
                f"{group} of {renderer.grid.task} sees other things than those that were trained on {self.spec.id}: "
                "give the same option minimap"
            )

    # ---- what an algorithm defines

    def action_weights(self, network: MeanFieldNetwork, z: Tensor, counts: Tensor) -> Tensor:
        """How much a neighbour counts that did each action last, [S, B, A]: as much as any other (Yang et al., eq. 3).

        `z` [S, B, H] are the units' state parts, `counts` [S, B, A] their neighbours.
        """
        return (1 / counts.sum(2, keepdim=True).clamp(min=1)).expand_as(counts)

    def mean_action(self, network: MeanFieldNetwork, z: Tensor, seen: Seen) -> Tensor | None:
        """The merged neighbour ã [S, B, A], zero without neighbours; None where values do not depend on them."""
        return None if seen.counts is None else seen.counts * self.action_weights(network, z, seen.counts)

    def neighbour_weights(self, network: MeanFieldNetwork, z: Tensor, seen: Seen) -> Tensor:
        """The weight of every neighbour in ã, [S, B, P], where `seen` says who they are."""
        assert seen.neighbours is not None
        if seen.counts is None:
            return torch.zeros_like(seen.neighbours.near, dtype=z.dtype)
        weights = self.action_weights(network, z, seen.counts)
        return weights.gather(2, seen.neighbours.action) * seen.neighbours.near

    @abstractmethod
    def learn(self, kind: str, experience: Experience) -> Metrics:
        """One gradient step of the networks of `kind`. Returns metrics [S] each."""

    # ---- batches

    def look(
        self,
        renderer: Renderer,
        state: Tensor,
        unit: Tensor,
        generators: Sequence[torch.Generator],
        copy: Tensor | None = None,
    ) -> Seen:
        """What `unit` [S, B] sees in each state [S, B, D]; what is random is drawn for each seed by its generator.

        With `copy` [S, B] states are [S, E, D], and each unit lives in the copy that it says: faster for many units of
        few states.
        """
        flat, number = state.flatten(0, 1), unit.flatten()
        sample = sample_of(state, copy)
        counts = None
        if self.looks_around:
            scope, radius = self.config.scope, self.config.radius
            if sample is None:
                counts = renderer.action_counts(flat, number.unsqueeze(1), scope, radius)
            else:
                counts = renderer.action_counts(flat, None, scope, radius)[sample, number]
            counts = counts.view(*unit.shape, -1)
        return Seen(inputs_of(renderer, flat, number, sample).view(*unit.shape, -1), counts)

    def sample(
        self, data: Source | Sequence[Source], batch_size: int, generators: Sequence[torch.Generator]
    ) -> dict[str, Experience]:
        """Draw `batch_size` units of every kind for each seed.

        Of several groups of a kind, as the two armies of a battle are, one update takes the one and the next the other:
        small batches cost what their overhead costs, and half a batch of each would pay it twice.
        """
        sources = data if isinstance(data, Sequence) else [data]
        kinds: dict[str, list[Source]] = {}
        for source in sources:
            kinds.setdefault(source.renderer.kind.name, []).append(source)
        turn = int(self.updates)
        return {
            kind: self._experience(groups[turn % len(groups)], batch_size, generators)
            for kind, groups in kinds.items()
        }

    def _experience(
        self, source: Source, batch_size: int, generators: Sequence[torch.Generator]
    ) -> Experience:
        """Draw and render; both frames at once, since overhead is what small batches cost."""
        batch = source.sample(batch_size, generators)
        states = torch.cat([batch.state, batch.next_state], dim=1)
        now, after = self.look(source.renderer, states, batch.unit.repeat(1, 2), generators).split(batch_size)
        going_on = (batch.next_alive & ~batch.terminated).to(batch.reward.dtype)
        return Experience(now, batch.action, batch.reward, after, going_on)

    def update(self, batch: dict[str, Experience]) -> Metrics:
        """One gradient step of every kind's networks. Metrics are means over kinds."""
        learnt = [self.learn(kind, experience) for kind, experience in batch.items()]
        self.updates += 1
        names = {name: None for metrics in learnt for name in metrics}
        found = {name: [metrics[name] for metrics in learnt if name in metrics] for name in names}
        return {name: torch.stack(values).mean(0) for name, values in found.items()}

    def observe(self, statistics: Sequence[UnitStatistics]) -> None:
        """Take the normalisers of a dataset."""

    # ---- values and acting

    def outputs(self, network: MeanFieldNetwork, seen: Seen) -> Tensor:
        """What the network says of all choices: [S, B, K]."""
        z = network.state_part(seen.inputs)
        action = self.mean_action(network, z, seen)
        return network.values(z, None if action is None else network.action_part(action))

    @torch.no_grad()
    def choose(
        self, state: Tensor, renderer: Renderer, epsilon: float, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Choose for every unit of the renderer's group in states [S, E, D]: [S, E, n] int64.

        Greedy with probability 1 - `epsilon`, else uniform. Only the living are rendered; the dead get 0.
        Raises `UsageError` for units of a kind that was not trained.
        """
        self.require_known(renderer)
        S, E, _ = state.shape
        alive = (
            scene(renderer.grid, state.flatten(0, 1)).alive[:, renderer.slots].reshape(S, -1)
        )  # [S, E * n]
        n = renderer.slots.stop - renderer.slots.start
        # The living of each seed first; seeds with fewer of them are filled up with dead ones.
        living = int(alive.sum(1).max())
        order = (~alive).to(torch.uint8).argsort(dim=1, stable=True)[:, :living]  # [S, B]
        chosen = torch.zeros_like(alive, dtype=torch.int64)
        if living:
            seen = self.look(renderer, state, order % n, generators, copy=order // n)
            best = self.outputs(self.actors[renderer.kind.name], seen).argmax(2)
            chosen.scatter_(1, order, best)
        if epsilon > 0:
            draws = [self._draw(torch.rand, (2, E * n), generator) for generator in generators]
            explore, which = torch.stack(draws, dim=1)  # [S, E * n] each
            chosen = torch.where(explore < epsilon, (which * len(renderer.kind.actions)).long(), chosen)
        return (chosen * alive).view(S, E, n)

    @torch.no_grad()
    def weights(self, state: Tensor, renderer: Renderer) -> tuple[Tensor, Tensor]:
        """Who counts for each unit of the renderer's group in states [S, E, D], and how much: [S, E, n, M] each.

        Weights of a unit add up to 1, or to 0 without neighbours that have acted. Raises `UsageError` as `choose`.
        """
        self.require_known(renderer)
        S, E, _ = state.shape
        n = renderer.slots.stop - renderer.slots.start
        unit = torch.arange(n, device=state.device).repeat(S, E)
        repeated = state.repeat_interleave(n, 1)
        generators = [torch.Generator(self.device).manual_seed(0) for _ in range(S)]
        seen = self.look(renderer, repeated, unit, generators)
        neighbours = seen.neighbours
        if neighbours is None:
            neighbours = neighbours_of(renderer, repeated, unit, self.config.scope, self.config.radius)
            seen = replace(seen, neighbours=neighbours)
        network = self.actors[renderer.kind.name]
        weight = self.neighbour_weights(network, network.state_part(seen.inputs), seen)
        movers = renderer.grid.movers
        near = neighbours.over_all(neighbours.near.to(weight.dtype), movers) > 0
        return near.view(S, E, n, -1), neighbours.over_all(weight, movers).view(S, E, n, -1)

    def of_seed(self, index: int) -> "MeanFieldLearner":
        """The learner of one seed, sharing memory: for acting, since it cannot be trained."""
        alone = copy_of(self)
        alone.seeds = self.seeds[index : index + 1]
        alone.actors = {kind: network.of_seed(index) for kind, network in self.actors.items()}
        return alone
