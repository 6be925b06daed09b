"""Evaluation: what a run with an `eval:` section adds to a generation run. Uses only public names of nanovllm."""
