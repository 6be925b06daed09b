"""What docs/cron.md gives to schedulers: files that parse, commands that our parser takes, rules for each exit code."""

import configparser
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs import exit_codes
from jobs.cli import build_parser
from jobs.sharding import parse_shard

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "docs" / "units"
PAGE = (ROOT / "docs" / "cron.md").read_text("utf-8")

CODES = {value for name, value in vars(exit_codes).items() if name.isupper()} | {130, 143}
HOPELESS = {exit_codes.UNUSABLE_INPUT, exit_codes.TOO_MANY_ERRORS, exit_codes.GATE_FAILED}
NO_FAILURE = {exit_codes.DEADLINE, exit_codes.LOCKED, 130, 143}
INSTALLED = "/opt/nanovllm/bin/nanovllm"


def parse(argv):
    """What our own parser makes of a command line."""
    assert argv[0] == "nanovllm" or argv[0] == INSTALLED
    return build_parser().parse_args(argv[1:])


@pytest.fixture
def stand_ins(tmp_path):
    """A folder with programs that write down how they were called; gives a function that runs a script beside them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"

    def program(name, text):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    program("nanovllm", f'printf "%q " nanovllm "$@" >> {calls}; echo >> {calls}; echo "it said so" >&2; exit "$CODE"')
    program("srun", '"$@"')
    program("nice", 'shift 2; "$@"')
    program("scontrol", f'printf "%q " scontrol "$@" >> {calls}; echo >> {calls}')

    def run(argv, code, **variables):
        calls.write_text("")
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "CODE": str(code), **variables}
        done = subprocess.run(argv, env=environment, cwd=UNITS, capture_output=True, text=True, check=False)
        return done, [shlex.split(line) for line in calls.read_text().splitlines()]

    return run


def test_the_table_says_what_to_do_after_each_exit_code():
    rows = re.findall(r"^\| ([\d, ]+) \|(.*)\|$", PAGE, re.MULTILINE)
    listed = [int(code) for codes, _ in rows for code in codes.split(",")]
    assert sorted(listed) == sorted(CODES | {137})
    assert all(row.count("|") == 5 for _, row in rows)


def test_every_file_is_shown_on_the_page():
    for path in UNITS.iterdir():
        assert f"(units/{path.name})" in PAGE


def test_commands_of_the_page_are_those_of_the_files():
    (line,) = re.findall(r"^15 1 .*$", PAGE, re.MULTILINE)
    assert line in (UNITS / "crontab").read_text().splitlines()
    submission = re.findall(r"^(?:array|sbatch).*$", PAGE, re.MULTILINE)
    comment = re.findall(r"^#   (.*)$", (UNITS / "slurm-array.sh").read_text(), re.MULTILINE)
    assert submission == comment


# ---- cron


def crontab_jobs():
    lines = [line for line in (UNITS / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    return [line.split(None, 5) for line in lines if not re.match(r"[A-Z]+=\S", line)]


@pytest.mark.parametrize("fields", crontab_jobs(), ids=lambda fields: fields[-1])
def test_lines_of_the_crontab_have_five_times_and_a_command(fields):
    for field, most in zip(fields, (59, 23, 31, 12, 7), strict=False):
        assert field == "*" or int(field) <= most
    assert "%" not in fields[5]  # cron makes a line feed of it


def test_commands_of_the_crontab_are_ours(stand_ins):
    commands = [fields[5].replace("/srv/articles ", ". ") for fields in crontab_jobs()]
    calls = [call for command in commands for call in stand_ins(["sh", "-c", command], 0)[1]]
    assert [parse(call).command for call in calls] == ["run", "status"]
    assert parse(calls[0]).progress == "none"


@pytest.mark.parametrize("code", sorted(CODES | {137}))
def test_cron_mails_what_a_person_has_to_read_and_nothing_else(code, stand_ins):
    done, calls = stand_ins(["./nightly.sh", "a job.yaml", "--set", "sampling.stop=[a b]"], code)
    assert calls == [["nanovllm", "run", "a job.yaml", "--set", "sampling.stop=[a b]", "--progress", "none"]]
    assert done.returncode == code
    assert done.stderr == ""
    assert done.stdout == ("" if code in NO_FAILURE | {0} else "it said so\n")


@pytest.mark.parametrize("path", sorted(UNITS.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_executed(path):
    assert path.stat().st_mode & stat.S_IXUSR


# ---- systemd


def unit(name):
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(UNITS / name, "utf-8")
    return parser


@pytest.mark.parametrize("name", ["articles.service", "articles-failed.service"])
def test_the_command_of_a_service_is_ours(name):
    command = shlex.split(unit(name)["Service"]["ExecStart"].removeprefix("-"))
    assert command[0] == INSTALLED
    parse(command)


def test_systemd_starts_again_what_another_start_can_mend():
    service = unit("articles.service")["Service"]
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == HOPELESS
    assert {int(code) for code in service["SuccessExitStatus"].split()} == NO_FAILURE
    assert service["Restart"] == "on-failure"
    assert unit("articles.service")["Unit"]["OnFailure"] == "articles-failed.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_in_the_units(tmp_path):
    for path in [*UNITS.glob("*.service"), *UNITS.glob("*.timer")]:
        (tmp_path / path.name).write_text(path.read_text().replace(INSTALLED, sys.executable))
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run([*verify, *names], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    # it does look
    (tmp_path / "articles.service").write_text("[Service]\nType=oneshot\nRestart=perhaps\nExecStart=/no/such/file\n")
    done = subprocess.run([*verify, *names], capture_output=True, text=True, env=environment, check=False)
    assert "perhaps" in done.stderr


# ---- SLURM


def directives(name):
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", (UNITS / name).read_text(), re.MULTILINE))


def test_each_task_of_the_array_does_its_shard(stand_ins):
    first, last = map(int, directives("slurm-array.sh")["array"].split("-"))
    shards = set()
    for task in range(first, last + 1):
        variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "77"}
        done, calls = stand_ins(["./slurm-array.sh"], 0, **variables)
        assert done.returncode == 0
        (call,) = calls
        arguments = parse(call)
        assert (arguments.command, arguments.set) == ("run", ["limits.deadline=3h50m"])
        shards.add(parse_shard(arguments.shard))
    assert sorted(shard.index for shard in shards) == list(range(8))
    assert {shard.count for shard in shards} == {8}


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_task_whose_time_is_over_requeues_itself_and_no_other_does(code, stand_ins):
    variables = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "77"}
    done, calls = stand_ins(["./slurm-array.sh"], code, **variables)
    assert done.returncode == code
    assert calls[1:] == ([["scontrol", "requeue", "77_3"]] if code in (5, 143) else [])
    _, calls = stand_ins(["./slurm-array.sh"], code, SLURM_RESTART_COUNT="20", **variables)
    assert len(calls) == 1


def test_the_merge_joins_the_directories_of_all_tasks(stand_ins):
    done, (call,) = stand_ins(["./slurm-merge.sh"], 3)
    assert done.returncode == 3
    arguments = parse(call)
    assert [str(path) for path in arguments.runs] == [f"runs/articles-{index}-of-8" for index in range(8)]
    assert str(arguments.out) == "runs/articles"


@pytest.mark.parametrize("name", ["slurm-array.sh", "slurm-merge.sh"])
def test_directives_stand_before_the_first_command(name):
    lines = (UNITS / name).read_text().splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[: last + 1])


# ---- Kubernetes


def manifest(name):
    return yaml.safe_load((UNITS / name).read_text("utf-8"))


def job_spec(name):
    spec = manifest(name)["spec"]
    return spec.get("jobTemplate", {"spec": spec})["spec"]


def container(name):
    (only,) = job_spec(name)["template"]["spec"]["containers"]
    return only


MANIFESTS = sorted(path.name for path in UNITS.glob("kubernetes-*.yaml"))


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_container_runs_our_command_and_mounts_its_volumes(name):
    box = container(name)
    assert box["command"] == ["nanovllm"]  # and no shell, which would not pass SIGTERM on
    parse(box["command"] + [argument.replace("$(JOB_COMPLETION_INDEX)", "0") for argument in box["args"]])
    volumes = {volume["name"] for volume in job_spec(name)["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in box["volumeMounts"]} == volumes
    assert box["workingDir"] in {mount["mountPath"] for mount in box["volumeMounts"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifest_holds_to_the_schema_of_kubernetes(name):
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(manifest(name), "1.37", strict=True)


def actions(name):
    """The action for each exit code that a policy names."""
    found = {}
    for rule in job_spec(name)["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"operator": "In", "values": []})
        assert codes["operator"] == "In"
        assert codes.get("containerName", "nanovllm") == container(name)["name"]
        for code in codes["values"]:
            assert code not in found
            found[code] = rule["action"]
    return found


def test_the_policies_try_again_what_another_try_can_mend():
    assert actions("kubernetes-cronjob.yaml") == {2: "FailJob", 3: "FailJob", 4: "FailJob", 5: "FailJob"}
    assert actions("kubernetes-indexed-job.yaml") == {5: "Ignore", 2: "FailJob", 3: "FailIndex", 4: "FailIndex"}
    for name in ("kubernetes-cronjob.yaml", "kubernetes-indexed-job.yaml"):
        spec = job_spec(name)
        # kubernetes takes a policy only with this, and FailIndex only with a limit for each index
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert ("backoffLimitPerIndex" in spec) == ("FailIndex" in actions(name).values())
        evicted = [rule for rule in spec["podFailurePolicy"]["rules"] if "onPodConditions" in rule]
        assert [rule["action"] for rule in evicted] == ["Ignore"]


def test_the_indexed_job_and_its_merge_agree_on_the_shards():
    spec = job_spec("kubernetes-indexed-job.yaml")
    assert spec["completionMode"] == "Indexed"
    arguments = parse(["nanovllm", *container("kubernetes-indexed-job.yaml")["args"]])
    shards = {
        parse_shard(arguments.shard.replace("$(JOB_COMPLETION_INDEX)", str(index)))
        for index in range(spec["completions"])
    }
    assert {(shard.index, shard.count) for shard in shards} == {(0, 4), (1, 4), (2, 4), (3, 4)}
    merged = parse(["nanovllm", *container("kubernetes-merge-job.yaml")["args"]])
    assert [str(path) for path in merged.runs] == [f"runs/articles-{index}-of-4" for index in range(4)]
