"""The queue transport: `worker` is the process, `intake` limits the jobs it takes, `concurrency` those that run."""
