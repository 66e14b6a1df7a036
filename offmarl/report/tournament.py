"""What came of a tournament, as tables: every pair, and how everyone stands at every number of agents."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from offmarl.behaviour.tournament import Pair, Rules
from offmarl.evaluation.statistics import estimate_text, fixed

BATTLE_COLUMNS = [
    "a",
    "b",
    "a wins [95 % CI]",
    "drawn",
    "b wins",
    "enemies left",
    "own left",
    "games",
    "steps",
]
ONE_SIDED = 0.8  # difference between the shares of games that someone wins on either side of the map
PURSUIT_COLUMNS = ["predators", "prey", "reward per predator and step", "per prey and step", "games"]


@dataclass(frozen=True)
class TournamentReport:
    """All pairs of a tournament, the smallest number of agents first."""

    rules: Rules
    names: tuple[str, ...]
    pairs: tuple[Pair, ...]

    @property
    def battle(self) -> bool:
        """Whether games are won and lost."""
        return self.rules.env == "magent_battle"

    @property
    def title(self) -> str:
        """What the table shows."""
        return f"{self.rules.env}, {self.rules.epsilon:.0%} of the learners' choices random"

    @property
    def labels(self) -> dict[str, str]:
        """Names without the folders that all of those in folders share."""
        parts = {name: name.split("/") for name in self.names}
        deep = [part for part in parts.values() if len(part) > 1]
        shared = 0
        while deep and all(len(part) > shared + 1 and part[shared] == deep[0][shared] for part in deep):
            shared += 1
        return {name: "/".join(part[shared:] if len(part) > 1 else part) for name, part in parts.items()}

    @property
    def sizes(self) -> list[int]:
        """Numbers of agents."""
        return sorted({pair.agents for pair in self.pairs})

    def value(self, row: str, column: str, agents: int) -> float | None:
        """What `row` achieves against `column`; None where they did not meet.

        In a battle the share of games that it wins, draws counted half; in a pursuit what its predators earn a step
        from the other's prey.
        """
        for pair in self.pairs:
            if pair.agents == agents and (row, column) == (pair.a, pair.b):
                return pair.a_reward[0] if pair.points is None else pair.points
            if pair.agents == agents and (row, column) == (pair.b, pair.a):
                return pair.b_reward[0] if pair.points is None else 1 - pair.points
        return None

    def columns(self) -> list[str]:
        """Header of the table of pairs."""
        shown = BATTLE_COLUMNS if self.battle else PURSUIT_COLUMNS
        return ["agents", *shown]

    def rows(self) -> list[list[str]]:
        """A row for every pair, of a pursuit for each of the two on the predators' side."""
        shown = self._battle if self.battle else self._pursuit
        return [row for pair in self.pairs for row in shown(pair)]

    def _battle(self, pair: Pair) -> Iterator[list[str]]:
        assert pair.win_rate is not None
        assert pair.win_interval is not None
        labels = self.labels
        yield [
            str(pair.agents),
            labels[pair.a],
            labels[pair.b],
            estimate_text(pair.win_rate, *pair.win_interval, 2),
            *(fixed(rate or 0.0, 2) for rate in (pair.draw_rate, pair.loss_rate)),
            f"{pair.enemies_left or 0:.0%} ({fixed(pair.enemies_left_number or 0.0, 1)})",
            f"{pair.own_left or 0:.0%}",
            str(pair.games),
            f"{pair.steps:.0f}",
        ]

    def _pursuit(self, pair: Pair) -> Iterator[list[str]]:
        labels = self.labels
        met = [
            (pair.a, pair.b, pair.a_reward[0], pair.b_reward[1]),
            (pair.b, pair.a, pair.b_reward[0], pair.a_reward[1]),
        ]
        known = [meeting for meeting in met if meeting[2] is not None]
        for predators, prey, reward, price in known:
            games = str(pair.games // len(known))
            numbers = (fixed(reward or 0.0, 3), fixed(price or 0.0, 3))
            yield [str(pair.agents), labels[predators], labels[prey], *numbers, games]

    def standing_columns(self) -> list[str]:
        """Header of the standings."""
        return ["contestant", "trained on", *(f"{size} agents" for size in self.sizes)]

    def standings(self) -> list[list[str]]:
        """Every contestant's mean over the others, the best at the smallest size first; a column for each size."""
        table = []
        for name in self.names:
            means = []
            for size in self.sizes:
                met = [self.value(name, other, size) for other in self.names if other != name]
                known = [value for value in met if value is not None]
                means.append(fmean(known) if known else None)
            table.append((name, means))
        table.sort(key=lambda entry: -1.0 if entry[1][0] is None else entry[1][0], reverse=True)
        return [
            [
                self.labels[name],
                self._training(name),
                *("-" if mean is None else fixed(mean, 2) for mean in means),
            ]
            for name, means in table
        ]

    def _training(self, name: str) -> str:
        """With how many agents a contestant was trained, and how many seeds of it play."""
        pair = next(pair for pair in self.pairs if name in (pair.a, pair.b))
        is_a = name == pair.a
        trained, seeds = (
            (pair.a_trained_on if is_a else pair.b_trained_on),
            len(pair.a_seeds if is_a else pair.b_seeds),
        )
        if trained is None:
            return "-"
        return f"{trained} agents" + (f", {seeds} seeds" if seeds > 1 else "")

    def notes(self) -> list[str]:
        """What a reader must know to read the tables rightly."""
        several = [name for name in self.names if self._training(name).endswith("seeds")]
        if self.battle:
            notes = [
                "the side of which more units live at the end wins; each plays half of the games on either side; "
                "intervals: Wilson's, over games"
            ]
        else:
            notes = ["rewards are means over the units of a side and the steps of a game"]
        decided = [pair for pair in self.pairs if _side_decides(pair)]
        if decided:
            notes.append(
                f"warning: in {len(decided)} of {len(self.pairs)} pairs the side of the map decides who wins: armies "
                "start in the same formation, so games of the same two policies are alike, and their intervals are "
                "too narrow; more seeds tell more than more games"
            )
        if several:
            notes.append("a run of several seeds plays with each of them, and games of one seed are alike")
        return notes

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        rules = {**asdict(self.rules), "options": dict(self.rules.options)}
        return {"rules": rules, "pairs": [pair.model_dump(mode="json") for pair in self.pairs]}


def _side_decides(pair: Pair) -> bool:
    """Whether a contestant wins on one side of the map and loses on the other."""
    by_side = pair.win_rate_by_side
    return by_side is not None and max(by_side) - min(by_side) >= ONE_SIDED
