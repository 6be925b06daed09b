"""What the process may use, read from made-up file systems."""

import pytest

from nanovllm import machine

GIB = 1 << 30


@pytest.fixture
def system(tmp_path):
    """Factory: writes files given by path, returns the root. 16 GiB of memory are available unless told otherwise."""

    def make(files):
        for name, text in {"proc/meminfo": "MemTotal: 33554432 kB\nMemAvailable:   16777216 kB\n", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def stat(**fields):
    return "".join(f"{name} {value}\n" for name, value in fields.items())


# ---- memory


def test_without_cgroups_the_kernels_own_estimate_counts(system):
    assert machine.available_memory(system({})) == 16 * GIB


def test_v2_limit_minus_anonymous_use(system):
    root = system({
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": f"{4 * GIB}\n",
        # 3 GiB of mapped weights are in memory.current, and are given back under pressure.
        "sys/fs/cgroup/job/memory.current": f"{4 * GIB}\n",
        "sys/fs/cgroup/job/memory.stat": stat(anon=GIB, file=3 * GIB, active_file=3 * GIB, shmem=0, slab=5 * GIB),
    })  # fmt: skip
    assert machine.available_memory(root) == 3 * GIB


def test_v2_shared_memory_and_kernel_memory_cannot_be_given_back(system):
    root = system({
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/job/memory.stat": stat(anon=GIB, shmem=GIB, slab_unreclaimable=GIB, slab_reclaimable=GIB),
    })  # fmt: skip
    assert machine.available_memory(root) == GIB


def test_v2_the_smallest_of_nested_limits_counts(system):
    files = {
        "proc/self/cgroup": "0::/pod/box/job\n",
        "sys/fs/cgroup/pod/memory.max": f"{6 * GIB}",
        "sys/fs/cgroup/pod/memory.stat": stat(anon=5 * GIB),  # neighbours in the pod
        "sys/fs/cgroup/pod/box/memory.max": "max\n",
        "sys/fs/cgroup/pod/box/memory.stat": stat(anon=GIB),
        "sys/fs/cgroup/pod/box/job/memory.max": f"{3 * GIB}",
        "sys/fs/cgroup/pod/box/job/memory.stat": stat(anon=GIB),
    }
    assert machine.available_memory(system(files)) == GIB
    files["sys/fs/cgroup/pod/memory.stat"] = stat(anon=GIB)
    assert machine.available_memory(system(files)) == 2 * GIB


def test_v2_max_is_no_limit(system):
    root = system({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "max\n"})
    assert machine.available_memory(root) == 16 * GIB


def test_v2_in_a_container_that_does_not_see_the_hosts_folders(system):
    root = system({
        "proc/self/cgroup": "0::/../../system.slice/docker-abc.scope\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.stat": stat(anon=GIB // 2),
    })  # fmt: skip
    assert machine.available_memory(root) == 3 * GIB // 2


def test_v1_limit_minus_resident_memory(system):
    root = system({
        "proc/self/cgroup": "12:pids:/job\n5:memory:/box/job\n4:cpu,cpuacct:/box\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{8 * GIB}\n",
        "sys/fs/cgroup/memory/box/memory.stat": stat(rss=0, total_rss=2 * GIB, total_cache=6 * GIB, total_shmem=GIB),
        "sys/fs/cgroup/memory/box/job/memory.limit_in_bytes": f"{7 * GIB}\n",
        "sys/fs/cgroup/memory/box/job/memory.stat": stat(total_rss=GIB, total_cache=5 * GIB),
    })  # fmt: skip
    assert machine.available_memory(root) == 5 * GIB


def test_v1_no_limit_is_a_number_near_2_to_the_63(system):
    root = system({
        "proc/self/cgroup": "5:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    })  # fmt: skip
    assert machine.available_memory(root) == 16 * GIB


def test_a_limit_above_what_is_free_changes_nothing(system):
    root = system({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{64 * GIB}"})
    assert machine.available_memory(root) == 16 * GIB


def test_more_use_than_the_limit_leaves_nothing(system):
    root = system({
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{GIB}",
        "sys/fs/cgroup/memory.stat": stat(anon=2 * GIB),
    })  # fmt: skip
    assert machine.available_memory(root) == 0


@pytest.mark.parametrize("text", ["", "garbage", "-5", "1.5G"])
def test_unreadable_limits_are_none(system, text):
    root = system({"proc/self/cgroup": "0::/\nnonsense\n", "sys/fs/cgroup/memory.max": text})
    assert machine.available_memory(root) == 16 * GIB


def test_this_machine():
    assert 0 < machine.available_memory() < 1 << 60
    assert machine.usable_cpus() >= 1


# ---- CPUs


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    "cpu_max, expected",
    [("max 100000", 8), ("200000 100000", 2), ("250000 100000", 3), ("50000 100000", 1), ("1000 100000", 1),
     ("900000 100000", 8), ("", 8), ("0 0", 8), ("nonsense", 8)],
)  # fmt: skip
def test_v2_cpu_quota(system, eight_cpus, cpu_max, expected):
    root = system({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": cpu_max})
    assert machine.usable_cpus(root) == expected


def test_v2_the_smallest_of_nested_quotas_counts(system, eight_cpus):
    root = system({
        "proc/self/cgroup": "0::/pod/job\n",
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        "sys/fs/cgroup/pod/job/cpu.max": "max 100000",
    })  # fmt: skip
    assert machine.usable_cpus(root) == 3


@pytest.mark.parametrize("quota, expected", [("-1", 8), ("150000", 2), ("400000", 4)])
def test_v1_cpu_quota(system, eight_cpus, quota, expected):
    root = system({
        "proc/self/cgroup": "4:cpu,cpuacct:/job\n5:memory:/other\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
    })  # fmt: skip
    assert machine.usable_cpus(root) == expected


def test_affinity_counts(system, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert machine.usable_cpus(system({})) == 1


# ---- reports


def test_cpu_on_x86_and_arm(system):
    text = "processor: 0\nmodel name\t: Big CPU @ 2GHz\nflags\t\t: fpu sse2 amx_tile avx2\n"
    x86 = machine.cpu(system({"proc/cpuinfo": text}))
    assert (x86.model, x86.flags) == ("Big CPU @ 2GHz", ("sse2", "avx2", "amx_tile"))
    arm = machine.cpu(system({"proc/cpuinfo": "processor: 0\nFeatures : fp asimd bf16\n"}))
    assert (arm.model, arm.flags) == ("unknown", ("asimd", "bf16"))


@pytest.mark.parametrize(
    "size, text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 29, "1.5 GiB"),
     (5 << 40, "5120.0 GiB")],
)  # fmt: skip
def test_format_bytes(size, text):
    assert machine.format_bytes(size) == text
