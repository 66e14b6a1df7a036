"""Who earned the reward: decompositions of the team reward."""
