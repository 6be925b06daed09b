"""Print the first prompts and answers of a results.jsonl, and where the file is."""

import argparse
import json
import textwrap
from pathlib import Path

WIDTH = 100


def prompt_of(row: dict) -> str:
    """Return what a row asked: its last message, or its prompt."""
    messages = row.get("messages")
    return str(messages[-1]["content"] if messages else row.get("prompt"))


def entry(line: dict) -> str:
    """Lay out one line of results as question and answer."""
    answer = line["text"] if line["error"] is None else f"error: {line['error']['message']}"
    parts = []
    for mark, text in (("> ", prompt_of(line["row"])), ("  ", answer.strip())):
        for paragraph in text.splitlines():
            parts.append(textwrap.fill(paragraph, WIDTH, initial_indent=mark, subsequent_indent=mark))
    return "\n".join(parts)


def main() -> None:
    """Print the entries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--rows", type=int, default=5)
    arguments = parser.parse_args()
    lines = arguments.results.read_text("utf-8").splitlines()
    for line in lines[: arguments.rows]:
        print("\n" + entry(json.loads(line)))
    print(f"\n{min(arguments.rows, len(lines))} of {len(lines)} answers; all of them: {arguments.results}")


if __name__ == "__main__":
    main()
