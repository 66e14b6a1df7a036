"""The multi-agent particle world, many copies at once."""
