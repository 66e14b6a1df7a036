"""What is learned from a dataset: one algorithm a file."""
