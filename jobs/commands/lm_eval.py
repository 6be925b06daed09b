"""`nanovllm lm-eval`: tasks of lm-evaluation-harness on local data, with its table and its files."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import exit_codes

EXAMPLE = "nanovllm lm-eval --model ./demo-model --tasks my_task --include_path ./tasks --limit 100"

# Tasks and their data come from this machine; who sets one of these to 0 decides otherwise.
_OFFLINE = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
_SEEDS = (0, 1234, 1234, 1234)  # the harness's own: Python, NumPy, torch, few-shot examples
_ENGINE_FLAGS = ("dtype", "threads", "max_length", "think_end_token", "enable_thinking")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags, by the harness's names."""
    parser.add_argument("--model", metavar="DIR", required=True, help="Hugging Face directory or hub id")
    parser.add_argument("--tasks", metavar="A,B", required=True, help="names of tasks, groups or tags; * is a wildcard")
    parser.add_argument("--include_path", metavar="DIR", help="a folder with more task files")
    parser.add_argument("--num_fewshot", metavar="N", type=int, help="examples in the prompt; default: the task's")
    parser.add_argument("--limit", metavar="N", type=_limit, help="only the first N documents of a task, or a share")
    parser.add_argument("--output_path", metavar="PATH", help="folder, or .json file, for the harness's result files")
    parser.add_argument("--log_samples", action="store_true", help="write samples_*.jsonl too; needs --output_path")
    parser.add_argument(
        "--apply_chat_template", metavar="NAME", nargs="?", const=True, default=False,
        help="prompts are conversations; NAME is one of several templates",
    )  # fmt: skip
    parser.add_argument(
        "--fewshot_as_multiturn", metavar="BOOL", nargs="?", const=True, type=_boolean,
        help="examples are turns of the conversation; default: true with a chat template",
    )  # fmt: skip
    parser.add_argument("--system_instruction", metavar="TEXT", help="system message of every prompt")
    parser.add_argument("--gen_kwargs", metavar="K=V,...", help="generation settings over the tasks' own")
    parser.add_argument("--use_cache", metavar="PATH", help="keep every answer in PATH_rank0.db, and use it again")
    parser.add_argument("--batch_size", metavar="N", help="ignored: all requests share batches as memory allows")
    parser.add_argument(
        "--seed", metavar="N", type=_seeds, default=list(_SEEDS),
        help="one number, or four: Python, NumPy, torch, few-shot; default: 0,1234,1234,1234",
    )  # fmt: skip
    parser.add_argument("--bootstrap_iters", metavar="N", type=int, default=100_000, help="resamples for some errors")
    parser.add_argument("--dtype", help="auto, float32, bfloat16 or int8")
    parser.add_argument("--threads", type=int, help="default: what affinity and cgroup allow")
    parser.add_argument("--max_length", metavar="N", type=int, help="longest prompt plus completion")
    parser.add_argument("--think_end_token", metavar="T", help="text or id; an answer is what comes after the last one")
    parser.add_argument(
        "--enable_thinking", metavar="BOOL", nargs="?", const=True, type=_boolean, help="for the chat template"
    )
    parser.add_argument("--model_args", metavar="K=V,...", default="", help="more settings of model and engine")


def main(arguments: argparse.Namespace) -> int:
    """Evaluate, save and print the table."""
    _check(arguments)
    for name in _OFFLINE:
        os.environ.setdefault(name, "1")
    simple_evaluate = _harness()
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import make_table, setup_logging

    if arguments.batch_size is not None:
        print("nanovllm lm-eval: --batch_size is ignored: requests share batches as memory allows", file=sys.stderr)
    # What the harness has to say about the tasks it says when it loads them for the evaluation.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager, tasks = _tasks(arguments)
    setup_logging()
    tracker = EvaluationTracker(output_path=arguments.output_path)
    python_seed, numpy_seed, torch_seed, fewshot_seed = arguments.seed
    results = simple_evaluate(
        model="nanovllm", model_args=_model_args(arguments), tasks=tasks, task_manager=manager,
        num_fewshot=arguments.num_fewshot, limit=arguments.limit, use_cache=arguments.use_cache,
        bootstrap_iters=arguments.bootstrap_iters, log_samples=arguments.log_samples, evaluation_tracker=tracker,
        system_instruction=arguments.system_instruction, apply_chat_template=arguments.apply_chat_template,
        fewshot_as_multiturn=_as_multiturn(arguments), gen_kwargs=_gen_kwargs(arguments.gen_kwargs),
        random_seed=python_seed, numpy_random_seed=numpy_seed, torch_random_seed=torch_seed,
        fewshot_random_seed=fewshot_seed,
    )  # fmt: skip
    _save(results, tracker)
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    return exit_codes.OK


def _check(arguments: argparse.Namespace) -> None:
    from nanovllm import UsageError

    if arguments.log_samples and not arguments.output_path:
        raise UsageError("--log_samples: give --output_path too, the place for the samples")
    if arguments.fewshot_as_multiturn and not arguments.apply_chat_template:
        raise UsageError("--fewshot_as_multiturn: turns need a conversation; give --apply_chat_template too")
    if arguments.include_path is not None and not Path(arguments.include_path).is_dir():
        raise UsageError(f"--include_path: {arguments.include_path} is no folder")


def _harness() -> Callable[..., Any]:
    """Register the model, and return the harness's `simple_evaluate`."""
    from nanovllm import UsageError

    try:
        from lm_eval import simple_evaluate

        import jobs.lm_eval_adapter  # noqa: F401  (importing it registers the model)
    except ImportError as error:
        raise UsageError(
            f"lm-evaluation-harness cannot be used ({error}); install it with: pip install 'nanovllm[lm-eval]'"
        ) from None
    return simple_evaluate


def _tasks(arguments: argparse.Namespace) -> tuple[Any, list[str]]:
    """Find the tasks and load each once, so that what is wrong with them is said before the model is loaded."""
    from lm_eval.tasks import TaskManager

    from nanovllm import UsageError

    manager = TaskManager(include_path=arguments.include_path, metadata=_model_args(arguments))
    wanted = list(dict.fromkeys(name.strip() for name in arguments.tasks.split(",") if name.strip()))
    for name in wanted:
        if not manager.match_tasks([name]):
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            hint = f"did you mean {near[0]!r}?" if near else "is the folder of its file given with --include_path?"
            raise UsageError(f"--tasks: there is no task {name!r}; {hint}")
    tasks = manager.match_tasks(wanted)
    try:
        manager.load(tasks)
    except Exception as error:
        raise UsageError(
            f"--tasks: {arguments.tasks} cannot be loaded, {type(error).__name__}: {error}; data must be local unless "
            "HF_DATASETS_OFFLINE=0 and HF_HUB_OFFLINE=0 are set"
        ) from error
    return manager, tasks


def _model_args(arguments: argparse.Namespace) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    model_args = {"pretrained": arguments.model, "seed": arguments.seed[0] or 0}
    model_args |= simple_parse_args_string(arguments.model_args)
    return model_args | {name: value for name in _ENGINE_FLAGS if (value := getattr(arguments, name)) is not None}


def _gen_kwargs(text: str | None) -> str | dict[str, Any] | None:
    """Read a JSON object, as lists of stops need it; the harness reads the short form itself."""
    from nanovllm import UsageError

    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"--gen_kwargs: expected K=V,... or a JSON object, found {text!r} ({error})") from None


def _as_multiturn(arguments: argparse.Namespace) -> bool:
    chosen = arguments.fewshot_as_multiturn
    return bool(arguments.apply_chat_template) if chosen is None else chosen


def _save(results: dict[str, Any], tracker: Any) -> None:
    """Write the harness's files; it only logs a failure, but who asked for files has to know."""
    from nanovllm import UsageError

    samples = results.pop("samples", None)
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"] if samples is not None else ():
        tracker.save_results_samples(task_name=task, samples=samples[task])
    if tracker.output_path is None:
        return
    folder = Path(tracker.output_path)
    folder = folder.parent if folder.suffix == ".json" else folder
    written = [path.name for path in folder.rglob(f"*_{getattr(tracker, 'date_id', '?')}.json*")]
    if len(written) < 1 + len(samples or ()):
        raise UsageError(
            f"--output_path: the harness could not write all files to {folder}; its message is above, "
            f"written are: {', '.join(written) or 'none'}"
        )


def _limit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0 or (value > 1 and not value.is_integer()):
        raise argparse.ArgumentTypeError(f"expected a number of documents or a share below 1, found {text!r}")
    return value if value < 1 else int(value)


def _seeds(text: str) -> list[int | None]:
    try:
        values = [None if part.strip().lower() == "none" else int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, len(_SEEDS)):
        raise argparse.ArgumentTypeError(f"expected one number or four, found {text!r}")
    return values * len(_SEEDS) if len(values) == 1 else values


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() == "true"
