"""Completion scripts for shells, made from the parsers of the commands: `tree` reads them, a module each writes one."""
