"""How good a policy is: rollouts, normalised scores, statistics."""
