"""A YAML recipe becomes a grid of cells, run through the stages by an engine and shown as tables."""
