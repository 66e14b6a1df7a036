"""What is stored: datasets on disk and the in-memory table of transitions."""
