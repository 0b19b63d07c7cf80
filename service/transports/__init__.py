"""The transports: the RunPod queue, HTTP and the command line."""
