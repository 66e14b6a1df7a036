"""Off-policy evaluation: what policies would earn, judged by the data alone."""
