"""One module for each command: `EXAMPLE`, `add_arguments(parser)` and `main(arguments)`, which gives the exit code."""
