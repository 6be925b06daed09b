"""The thread team: barriers hold, sizes are checked, and a forked child is told instead of left waiting."""

import subprocess
import sys
import textwrap

import pytest

from nanovllm.kernels.team import Team, barrier_violations


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_no_thread_passes_a_barrier_before_all_have_arrived(num_threads):
    team = Team(num_threads)
    assert team.num_threads == num_threads
    for rounds in (0, 1, 500, 500):
        assert barrier_violations(team, rounds) == 0


def test_teams_come_and_go():
    for _ in range(50):
        assert barrier_violations(Team(3), 3) == 0


def test_two_teams_do_not_disturb_each_other():
    first, second = Team(2), Team(3)
    for _ in range(5):
        assert barrier_violations(first, 20) == barrier_violations(second, 20) == 0


@pytest.mark.parametrize("num_threads", [0, -1, 1025])
def test_impossible_sizes_are_refused(num_threads):
    with pytest.raises(ValueError, match=f"threads must be from 1 to 1024, found {num_threads}"):
        Team(num_threads)


FORK = """
    import os, sys
    import numpy as np
    from nanovllm.kernels.linear import Linear
    from nanovllm.kernels.team import Team

    team = Team(2)
    linear = Linear(np.ones((2, 2), np.float32))
    x, y = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    linear(team, x, y)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            linear(team, x, y)
        except RuntimeError as error:
            status = 0 if "make the LLM in the child" in str(error) else 2
        try:
            team.check_process()
        except RuntimeError:
            pass
        else:
            status = 3
        del team, linear  # must not wait for threads that the child does not have
        linear = Linear(np.ones((2, 2), np.float32))
        linear(Team(2), x, y)
        sys.exit(status if y.tolist() == [[2.0, 2.0]] else 4)
    _, status = os.waitpid(child, 0)
    linear(team, x, y)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_is_refused_and_can_make_its_own_team():
    # In a process of its own, because Python warns about a fork once threads exist.
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
