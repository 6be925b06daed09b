"""Print what the extras named on the command line require, a line each, as the installed nanovllm declares them."""

import sys
from importlib.metadata import requires


def extra_requirements(extras: list[str]) -> list[str]:
    """Return the requirements of these extras; of their markers only the part that names the extra is left out."""
    found = []
    for line in requires("nanovllm") or []:
        requirement, _, marker = line.partition(";")
        if any(f'extra == "{extra}"' in marker for extra in extras):
            rest = [part.strip() for part in marker.split(" and ") if "extra ==" not in part]
            found.append("; ".join([requirement.strip(), *([" and ".join(rest)] if rest else [])]))
    return found


if __name__ == "__main__":
    print("\n".join(extra_requirements(sys.argv[1:])))
