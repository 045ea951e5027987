"""Other benchmarks' logs, read: where their files lie, what a line says, what is left out and why."""
