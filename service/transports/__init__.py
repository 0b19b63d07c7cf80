"""The ways in: the RunPod queue, HTTP and the command line. Each turns bytes and signals into calls of the codec."""
