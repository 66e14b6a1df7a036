"""Fixed opponents: agents inside an environment that do not learn."""
