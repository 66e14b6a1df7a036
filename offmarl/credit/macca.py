"""MACCA: credit assignment by a causal model of the team's reward.

Source: Wang et al. 2023, "MACCA: offline multi-agent reinforcement learning with causal credit assignment",
arXiv 2312.03644. The team's reward is the sum of individual rewards, each a function of few variables,

    R = Σ_i r_i(c_i ∘ (s, a, s')),

and masks c_i and functions r_i are learned from R alone. The paper's sum constraint does not determine them: a
fit of R² .97 may well pay the wrong agents. Here every edge has its own hard-concrete gate with an *own-first
prior* (an agent's own variables start open and are cheap to keep, others start closed and are dear), the
functions are refitted from scratch on the edges that survive, and an ensemble measures what is left undecided.

Shapes: M members (prices λ, candidate masks or resampled refits), N agents, B batch, G groups of a batch,
V variables that vary, K variables that a head looks at, H held-out transitions, R dataset rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offmarl.credit.base import AgentVerdict, Credit, equal_split
from offmarl.credit.diagnosis import (
    DECLARED_SHARED,
    EQUAL_SPLIT,
    KEPT,
    Diagnosis,
    diagnose,
    r_squared,
)
from offmarl.credit.fitted import FitConfig, FittedDecomposer, OwnerConfig
from offmarl.credit.gates import mean_gates, open_probability, sample_gates
from offmarl.credit.heads import FittedFunctions, RewardHeads, minimise, variables_seen
from offmarl.credit.probes import probe_weights
from offmarl.credit.samples import Samples, living
from offmarl.data.table import Transitions
from offmarl.settings import Count, NonNegative, Positive, Share
from offmarl.streams import stream

CLOSED = 0.05  # probability below which a gate half-way through never opens again (measured)


@dataclass
class MaccaConfig(FitConfig, OwnerConfig):
    """Hyper-parameters; "measured" means on synthetic rewards of known causes and on the particle tasks.

    None is from the paper, whose own stand in `macca_paper`. Steps, sizes and rates without a word were chosen with the
    method and not varied since.
    """

    # Structure: which edges exist
    width: Count = 64  # hidden units a head; 48 measured equal
    structure_depth: Count = 2  # hidden layers
    structure_steps: Count = 3_500
    batch_size: Count = 512
    learning_rate: Positive = 3e-3  # Adam; the official code's 5e-2 on raw inputs went dead on some seeds
    warm_up: Count = 100  # steps of linear warm-up
    gate_learning_rate: Positive = 2e-2
    gate_groups: Count = 8  # gates are drawn once per batch_size / gate_groups transitions; 1 loses edges
    own_logit: float = 2.0  # own-first prior: logits at the start ...
    global_logit: float = 0.0
    cross_logit: float = -3.0  # -2 attributes rewards to the wrong agent on some seeds
    own_weight: NonNegative = 1.0  # ... and what an edge costs
    global_weight: NonNegative = 2.0
    cross_weight: NonNegative = 4.0
    sparsity: Positive | None = None  # λ; None: by the number of transitions, see sparsity_strength
    cross_candidates: Count = 64  # others' variables that a head can look at, see candidates
    screening_steps: Count = 500  # of the fit from which those are chosen
    sparsity_ramp: Share = 0.2  # share of the steps over which λ grows from 0
    keep_probability: Share = 0.5  # an edge exists if its gate is open with more than this probability

    # Pruning: larger λ on the surviving variables, where the first pass fits badly (redundant variables)
    pruning_factors: tuple[Positive, ...] = (4.0, 12.0)  # of λ; () never prunes, one alone was not enough
    pruning_steps: Count = 2_000  # fewer than for the structure: few variables are left
    good_fit: float = 0.97  # held-out R² of the structure network from which pruning is not tried
    choice_steps: Count = 1_000  # of the refits that compare candidate masks
    choice_tolerance: NonNegative = 0.1  # the sparsest mask wins that leaves at most 10 % more unexplained

    # Refit: how much each edge pays
    refit_depth: Count = 3
    refit_steps: Count = 1_500
    refit_batch_size: Count = 128  # of each member; 256 gains .002-.01 of skill for half as much time again
    refit_learning_rate: Positive = 1e-2  # Adam, cosine; edges are fixed, so that larger steps do no harm
    tie_break: NonNegative = 0.02  # μ: smallest individual rewards among those that explain R equally well
    members: Count = 5  # refits on resampled episodes; from 3 on the last two are probes, see refit

    # Answer
    shared_reward: bool = False  # you know that all agents are paid the same: R/N is then the truth
    fallback: bool = True  # answer R/N where the data does not identify more

    def __post_init__(self) -> None:
        if self.batch_size % self.gate_groups:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of gate_groups {self.gate_groups}")


class Macca(FittedDecomposer):
    """Causal credit assignment with own-first gates and an ensemble refit; see the module's docstring."""

    config_class = MaccaConfig

    config: MaccaConfig
    fitted: FittedFunctions | None
    diagnosis: Diagnosis | None

    def forget(self) -> None:
        """Know nothing yet."""
        super().forget()
        self.fitted, self.diagnosis = None, None

    # -- the losses ----------------------------------------------------------------------------------------

    @staticmethod
    def reconstruction(agent_reward: Tensor, team_reward: Tensor) -> Tensor:
        """Σ_m E[(Σ_i r̂_i - R)²], eq. 6 of the paper; [M, N, B] and [M or 1, B]."""
        return (agent_reward.sum(1) - team_reward).square().mean(1).sum()

    @staticmethod
    def sparsity(gate_logit: Tensor, edge_price: Tensor) -> Tensor:
        """Σ_edges λ w · P(gate ≠ 0), the expected price of all edges; [M, N, K] each."""
        return (edge_price * open_probability(gate_logit)).sum()

    @staticmethod
    def tie_break(agent_reward: Tensor, weight: Tensor) -> Tensor:
        """Σ_i w_i E[r̂_i²]: what two heads could both pay is split where that is smallest; [M, N, B], [M, N]."""
        return (weight * agent_reward.square().mean(2)).sum()

    def structure_loss(
        self,
        heads: RewardHeads,
        inputs: Tensor,
        team_reward: Tensor,
        alive: Tensor,
        gate_logit: Tensor,
        edge_price: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Reconstruction under random gates + sparsity, on one batch [1, B, V], [1, B], [1, B, N]."""
        gates = sample_gates(gate_logit, self.config.gate_groups, generator)  # [M, G, N, K]
        agent_reward = heads(inputs, gates) * alive.mT  # [M, N, B]
        return self.reconstruction(agent_reward, team_reward) + self.sparsity(gate_logit, edge_price)

    def refit_loss(
        self,
        heads: RewardHeads,
        inputs: Tensor,
        team_reward: Tensor,
        alive: Tensor,
        gates: Tensor,
        tie_weight: Tensor,
    ) -> Tensor:
        """Reconstruction on fixed edges [M, N, K] + μ tie-break, on a batch a member: [M, B, V], [M, B], [M, B, N]."""
        agent_reward = heads(inputs, gates.unsqueeze(1)) * alive.mT  # [M, N, B]
        ties = self.tie_break(agent_reward, tie_weight)
        return self.reconstruction(agent_reward, team_reward) + self.config.tie_break * ties

    # -- learning ------------------------------------------------------------------------------------------

    def fit(self, transitions: Transitions) -> None:
        """Learn the split, unless all agents are paid the same: then R/N is known to be exact."""
        self.forget()
        if self.config.shared_reward or self.spec.shared_reward:
            source = "as declared" if self.config.shared_reward else "by the environment"
            self.reason = f"all agents are paid the same, {source}: R/N is exact"
            self.exact = DECLARED_SHARED
            return
        super().fit(transitions)

    def learn(self, samples: Samples, transitions: Transitions) -> None:
        """Learn masks and reward functions, and measure on held-out episodes what the data leaves undecided."""
        probabilities, masks = self.learn_structure(samples)
        chosen = self.choose_mask(samples, masks)
        self.edge_probability, self.mask = probabilities[chosen], masks[chosen]
        if not self.mask.any():
            self.reason = "no variable explains the team reward"
            return
        self.shared_parents = self.shared_parents_of(samples, self.mask)
        self.fitted = self.refit(samples, self.mask)
        self.diagnosis = self.diagnose(samples, self.fitted)
        self.reason = self.diagnosis.reason_to_fall_back(self.spec.agents)

    def learn_structure(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Edge probabilities [M, N, V] and masks [M, N, V] bool of M candidates, one for each λ that is tried.

        Where the first pass fits badly, the gates are learned anew on the surviving variables at higher prices:
        variables that tell the same thing twice (a position, its successor and the velocity between) all survive
        a low price, and a small network then misses what only one of them says sharply.
        """
        config = self.config
        base = self.sparsity_strength(len(samples.inputs))
        looked_at = self.candidates(samples)
        probability, fit_r2 = self._learn_gates(
            samples, looked_at, [base], config.structure_steps, "structure"
        )
        masks = self.edges(samples, probability)
        if fit_r2 < config.good_fit and config.pruning_factors and masks.any():
            looked_at = looked_at & masks.any(0).any(0)
            strengths = [base * factor for factor in config.pruning_factors]
            pruned, _ = self._learn_gates(samples, looked_at, strengths, config.pruning_steps, "pruning")
            probability = torch.cat([probability, pruned])
            masks = torch.cat([masks, self.edges(samples, pruned)])
        return probability, masks

    def candidates(self, samples: Samples) -> Tensor:
        """Edges that get a gate, [N, V] bool: own variables, nobody's, and so many of others'.

        A variable of another agent can be told from that agent's own cause only where it interacts with agent
        i's own variables: so where there are too many, those are taken whose product with one of them explains
        most of what the own and nobody's variables leave unexplained. Cost is then linear in N.
        """
        near = samples.own | samples.shared
        if int((~near).sum(1).max()) <= self.config.cross_candidates:
            return torch.ones_like(near)
        fitted = self._fit_candidates(samples, near[None], self.config.screening_steps, "screening")
        explained = fitted.predict(samples.inputs, samples.alive)[0].sum(0)
        interaction = samples.interactions(samples.team_reward - explained).masked_fill(near, -1)
        return near.scatter(1, interaction.topk(self.config.cross_candidates, 1).indices, True)

    def sparsity_strength(self, transitions: int) -> float:
        """λ for so many fitted transitions: .005 from 50k on, .015 at 10k, .03 at 3k (measured)."""
        if self.config.sparsity is not None:
            return self.config.sparsity
        return 0.005 * max(1.0, 50_000 / transitions) ** (2 / 3)

    def edges(self, samples: Samples, edge_probability: Tensor) -> Tensor:
        """The edges that exist, [M, N, V] bool: the probable ones; agents of one role vote on their own.

        Half of the votes suffice: an agent that moves a variable too little to show it would outvote one that is
        certain. One certain agent alone does not decide for all: its data may tie the variable to a cause (a trial
        at 100k rows: skill .94 instead of .99 with 8 agents of which 4 explore, .93 instead of .95 in tag).
        """
        mask = edge_probability > self.config.keep_probability
        for variables in samples.roles:  # [members of the role, k]
            agents = samples.own[:, variables[:, 0]].int().argmax(0)[:, None]  # [members of the role, 1]
            votes = mask[:, agents, variables].float().mean(1, keepdim=True)  # [M, 1, k]
            mask[:, agents, variables] = (votes >= 0.5).expand(-1, len(variables), -1)
        return mask

    @staticmethod
    def shared_parents_of(samples: Samples, masks: Tensor) -> Tensor:
        """The parents that are nobody's and that some head of `masks` [..., N, V] uses: [..., V] bool."""
        return masks.any(-2) & samples.shared

    def open_shared_parents(self, samples: Samples, masks: Tensor) -> Tensor:
        """The edges to refit, [M, N, V] bool: a shared parent is open to all.

        Otherwise a term that every agent is paid lands in whichever head found it first.
        """
        return masks | self.shared_parents_of(samples, masks).unsqueeze(-2)

    def choose_mask(self, samples: Samples, masks: Tensor) -> int:
        """Index of the sparsest mask of [M, N, V] whose refit explains held-out rewards about as well as any."""
        distinct = [k for k in range(len(masks)) if not any(masks[k].equal(mask) for mask in masks[:k])]
        if len(distinct) == 1:
            return 0
        candidates = masks[distinct]
        fitted = self._fit_candidates(samples, candidates, self.config.choice_steps, "choice")
        team_reward = fitted.predict(samples.heldout_inputs, samples.heldout_alive).sum(1)  # [candidates, H]
        unexplained = [1 - r_squared(predicted, samples.heldout_team_reward) for predicted in team_reward]
        limit = min(unexplained) * (1 + self.config.choice_tolerance)
        edges = candidates.sum((1, 2)).tolist()
        return min((edges[k], distinct[k]) for k in range(len(distinct)) if unexplained[k] <= limit)[1]

    def refit(self, samples: Samples, mask: Tensor) -> FittedFunctions:
        """Fit the reward functions from scratch on the edges of `mask` [N, V], K times in one computation.

        Every member sees its own resample of the training episodes. The last are probes: their tie-breaks favour
        one side of a dispute, then the other, so that they differ exactly where the data does not decide.
        """
        tie_weight = torch.ones(self.plain_members, self.spec.n_agents, device=self.device)
        if self.config.members > self.plain_members:
            tie_weight = torch.cat([tie_weight, probe_weights(samples, mask)])
        members = len(tie_weight)
        rows = samples.resample_episodes(members, stream(self.seed, "macca", "refit", "episodes"))
        masks = mask.expand(members, -1, -1)
        fitted = self._fit_functions(samples, masks, tie_weight, rows, self.config.refit_steps, "refit")
        return fitted.centred(samples.inputs, samples.alive)

    def diagnose(self, samples: Samples, fitted: FittedFunctions) -> Diagnosis:
        """What held-out transitions say about the fit."""
        return diagnose(samples, fitted, self.plain_members, self.layout.kinds(), self.seed)

    # -- the answer ----------------------------------------------------------------------------------------

    def assign(self, transitions: Transitions) -> Credit:
        """Individual rewards of every row; R/N with the reason where that is the better answer."""
        if self.fitted is None or (self.reason and self.config.fallback):
            fall_back, reward, std = True, equal_split(transitions), None
        else:
            fall_back, (reward, std) = False, self._individual(transitions, self.fitted)
        diagnosis = self.diagnosis
        answer = Credit(
            reward=reward,
            std=std,
            metrics=diagnosis.metrics() if diagnosis else {"fit_r2": None},
            agents=[self._verdict(agent, fall_back) for agent in range(self.spec.n_agents)],
            fallback=fall_back,
            reason=self.reason or "; ".join(diagnosis.cautions(self.spec.agents) if diagnosis else []),
        )
        return self.named(answer)

    def _individual(self, transitions: Transitions, fitted: FittedFunctions) -> tuple[Tensor, Tensor]:
        """Rewards and their spread over the ensemble, [R, N] each; the living share constants and residual."""
        reward, std = (torch.zeros(len(transitions.row), self.spec.n_agents) for _ in range(2))
        for rows in self.chunks(transitions.transition_rows):
            alive = living(transitions, rows).to(self.device)  # [n, N]
            members = fitted.predict(self.scale.inputs(transitions, rows), alive)  # [M, N, n]
            point = self._point(members).T
            reward[rows.cpu()] = self.in_units_of_reward(point, 0.0, transitions, rows, alive).cpu()
            if len(members) > 1:
                std[rows.cpu()] = (members.std(0).T * self.scale.reward_std).cpu()
        return reward, std

    def _verdict(self, agent: int, fall_back: bool) -> AgentVerdict:
        name, diagnosis = self.spec.agents[agent], self.diagnosis
        if diagnosis is None:
            return AgentVerdict(name, self.exact or EQUAL_SPLIT)
        verdict = KEPT if self.reason else diagnosis.verdict(agent)
        return AgentVerdict(
            name,
            EQUAL_SPLIT if fall_back else verdict,
            diagnosis.ambiguity[agent],
            diagnosis.reproducibility[agent],
            diagnosis.locality.agents[agent],
            diagnosis.exploration[agent],
            diagnosis.overlap[agent],
        )

    @property
    def plain_members(self) -> int:
        """How many members of the ensemble make the estimate; the others are probes."""
        return self.config.members - 2 if self.config.members > 2 else self.config.members

    def _point(self, members: Tensor) -> Tensor:
        """The estimate of an ensemble [M, N, n]: the mean of its plain members, [N, n]."""
        return members[: self.plain_members].mean(0)

    # -- fitting -------------------------------------------------------------------------------------------

    def _learn_gates(
        self, samples: Samples, looked_at: Tensor, strengths: Sequence[float], steps: int, stage: str
    ) -> tuple[Tensor, float]:
        """Edge probabilities [M, N, V] for M prices λ on the edges `looked_at` [N, V], and the best held-out R².

        Half-way what is closed is dropped (most is by then), and the other half of the steps costs a fraction.
        """
        config, members = self.config, len(strengths)
        variables, counts = variables_seen(looked_at)  # [N, K]
        weight = samples.by_ownership(config.own_weight, config.global_weight, config.cross_weight)
        weight = weight.gather(1, variables)
        prior = samples.by_ownership(config.own_logit, config.global_logit, config.cross_logit)
        prior = prior.gather(1, variables).masked_fill(~counts, -math.inf)
        gate_logit = prior.repeat(members, 1, 1).requires_grad_()  # [M, N, K]
        price = torch.tensor(strengths, device=self.device)[:, None, None] * weight
        heads = RewardHeads(
            variables,
            open_probability(gate_logit.detach()).sum(2),
            config.width,
            config.structure_depth,
            stream(self.seed, "macca", stage, "init"),
        )
        generator = stream(self.seed, "macca", stage, "batches", device=self.device)
        ramp = config.sparsity_ramp * steps

        def learn(gate_logit: Tensor, price: Tensor, part: range) -> None:
            def loss(step: int) -> Tensor:
                self.report(stage, step + 1, steps)
                drawn = (1, config.batch_size)
                batch = torch.randint(len(samples.inputs), drawn, generator=generator, device=self.device)
                data = samples.inputs[batch], samples.team_reward[batch], samples.alive[batch]
                return self.structure_loss(heads, *data, gate_logit, price * min(step / ramp, 1), generator)

            rates = [(heads.parameters, config.learning_rate), ([gate_logit], config.gate_learning_rate)]
            minimise(loss, rates, part, steps, config.warm_up)

        learn(gate_logit, price, range(steps // 2))
        kept, counts = variables_seen(self._still_open(open_probability(gate_logit.detach()), variables))
        heads.keep(kept)  # [N, k]
        gate_logit = gate_logit.detach().gather(2, kept.expand(members, -1, -1))
        gate_logit = gate_logit.masked_fill(~counts, -math.inf).requires_grad_()  # [M, N, k]
        price = price.gather(2, kept.expand(members, -1, -1))
        learn(gate_logit, price, range(steps // 2, steps))
        gate_logit = gate_logit.detach()
        probability = torch.zeros(members, *looked_at.shape, device=self.device)
        probability.scatter_(2, heads.variables.expand(members, -1, -1), open_probability(gate_logit))
        fitted = FittedFunctions(heads, mean_gates(gate_logit))
        predicted = fitted.predict(samples.heldout_inputs, samples.heldout_alive).sum(1)
        return probability, max(r_squared(member, samples.heldout_team_reward) for member in predicted)

    def _still_open(self, probability: Tensor, variables: Tensor) -> Tensor:
        """Of the edges with probabilities [M, N, K] those to go on with, [N, K] bool.

        A variable that is open to one head stays for all, so that a cause that landed with the wrong agent can
        still move; where that would be too many, a head goes on with its own open edges.
        """
        edge_open = (probability > CLOSED).any(0)  # [N, K]
        anywhere = torch.zeros(int(variables.max()) + 1, dtype=torch.bool, device=self.device)
        anywhere[variables[edge_open]] = True
        if int(anywhere.sum()) > self.config.cross_candidates:
            return edge_open
        return anywhere[variables] & (probability > 0).any(0)

    def _fit_candidates(self, samples: Samples, masks: Tensor, steps: int, stage: str) -> FittedFunctions:
        """Reward functions on the edges of `masks` [M, N, V], all on all samples, short."""
        plain = torch.ones(masks.shape[:2], device=self.device)
        everyone = torch.arange(len(samples.inputs), device=self.device).expand(len(masks), -1)
        size = torch.full((len(masks),), len(samples.inputs), device=self.device)
        return self._fit_functions(samples, masks, plain, (everyone, size), steps, stage)

    def _fit_functions(
        self,
        samples: Samples,
        masks: Tensor,
        tie_weight: Tensor,
        rows: tuple[Tensor, Tensor],
        steps: int,
        stage: str,
    ) -> FittedFunctions:
        """Reward functions on the edges of `masks` [M, N, V], member m on its own rows of the samples."""
        masks = self.open_shared_parents(samples, masks)
        variables, _ = variables_seen(masks.any(0))  # [N, K]
        gates = masks.gather(2, variables.expand(len(masks), -1, -1)).float()
        heads = RewardHeads(
            variables,
            gates.sum(2),
            self.config.width,
            self.config.refit_depth,
            stream(self.seed, "macca", stage, "init"),
        )
        generator = stream(self.seed, "macca", stage, "batches", device=self.device)
        available, size = rows

        def loss(step: int) -> Tensor:
            self.report(stage, step + 1, steps)
            shape = (len(masks), self.config.refit_batch_size)
            draw = torch.randint(2**62, shape, generator=generator, device=self.device)
            batch = available.gather(1, draw % size[:, None])  # [M, B]
            data = samples.inputs[batch], samples.team_reward[batch], samples.alive[batch]
            return self.refit_loss(heads, *data, gates, tie_weight)

        rates = [(heads.parameters, self.config.refit_learning_rate)]
        minimise(loss, rates, range(steps), steps, self.config.warm_up)
        return FittedFunctions(heads, gates)
