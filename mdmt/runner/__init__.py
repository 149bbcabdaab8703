"""Running jobs: `job` is one training in a process of its own, `local` runs the graph of jobs."""
