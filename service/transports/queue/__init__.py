"""The operations on a RunPod queue: `worker` is the process, `intake` takes jobs, `concurrency` decides what runs."""
