"""Time and memory of one call, on a CPU or a GPU."""
