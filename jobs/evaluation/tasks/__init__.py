"""The kinds of evaluation, a module for each: what is asked of the model and how its answer is judged."""
