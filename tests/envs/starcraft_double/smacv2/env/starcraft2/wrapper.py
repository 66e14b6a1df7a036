"""Like smacv2's: writes into the configuration it is given, and returns nothing after a repeated reset."""

from smacv2.env.starcraft2.distributions import DISTRIBUTIONS
from smacv2.env.starcraft2.starcraft2 import CannotResetException, StarCraft2Env


class StarCraftCapabilityEnvWrapper:
    def __init__(self, **kwargs):
        config = kwargs["capability_config"]
        self.env_key_to_distribution_map = {}
        for env_key, part in config.items():
            if env_key in ("n_units", "n_enemies"):
                continue
            assert "env_key" not in part, "this configuration was used before"
            part |= {"env_key": env_key, "n_units": config["n_units"], "n_enemies": config["n_enemies"]}
            self.env_key_to_distribution_map[env_key] = DISTRIBUTIONS[part["dist_type"]](part)
        self.env = StarCraft2Env(**kwargs)

    def reset(self):
        try:
            config = {}
            for distribution in self.env_key_to_distribution_map.values():
                config |= distribution.generate()
            return self.env.reset(config)
        except CannotResetException:
            self.reset()

    def step(self, actions):
        return self.env.step(actions)

    def __getattr__(self, name):
        return getattr(self.env, name)
