"""Like smacv2's: generators of their own, that nobody can seed; one distribution inside another."""

import numpy as np


class Inner:
    def __init__(self):
        self.rng = np.random.default_rng()


class WeightedTeams:
    def __init__(self, config):
        self.units, self.weights, self.number = config["unit_types"], config["weights"], config["n_units"]
        self.rng = np.random.default_rng()

    def generate(self):
        team = self.rng.choice(len(self.units), size=self.number, p=self.weights)
        return {"team_gen": {"ally_team": list(team), "id": 0}}


class SurroundedAndReflect:
    def __init__(self, config):
        self.number, self.size = config["n_units"], config["map_x"]
        self.reflect = Inner()

    def generate(self):
        return {
            "ally_start_positions": {
                "item": self.reflect.rng.uniform(0, self.size, (self.number, 2)),
                "id": 0,
            }
        }


DISTRIBUTIONS = {"weighted_teams": WeightedTeams, "surrounded_and_reflect": SurroundedAndReflect}
