"""The runner: files of prompts in, files of results out.

Owns job files, rows, results and the command line. Uses only the public names of `nanovllm` and knows nothing of
tensors, blocks or kernels. Module by module: `cli` and `commands` parse flags; `job_file` reads a job; `inputs` and
`readers` stream rows out of files; `rows` and `prompts` turn a row into a request; `run` drives the engine; `results`
and `run_directory` keep what it gives; `progress`, `summary` and `manifest` tell people about it.
"""
