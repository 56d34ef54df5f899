import pytest

from llama_dyt.core.environment import ProcessEnvironment, first_slurm_host, launch_warnings, read_environment
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.launch.process_group import device_connections

BATCH_SCRIPT = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "gpu[03-06]",
    "SLURM_NODELIST": "gpu[03-06]",
    "SLURM_NTASKS": "28",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_TASKS_PER_NODE": "8(x3),4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
"""What a batch script sees; seen in one under Slurm 22.05."""
SRUN = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "28",
    "SLURM_STEP_NODELIST": "gpu[03-06]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x3),4",
}
"""What a task of srun sees besides."""


def test_a_plain_process_is_a_world_of_one():
    environment = read_environment({})
    assert (environment.rank, environment.world_size, environment.launcher) == (0, 1, "python")


def test_torchruns_variables_are_read():
    env = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "1234"}
    environment = read_environment(env)
    assert (environment.rank, environment.world_size, environment.local_rank) == (3, 8, 1)
    assert (environment.master_address, environment.master_port) == ("node0", 1234)


def test_slurms_variables_are_read_and_two_jobs_get_two_ports():
    env = {**SRUN, "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[03-04]"}
    first = read_environment({**env, "SLURM_JOB_ID": "100"})
    second = read_environment({**env, "SLURM_JOB_ID": "101"})
    assert (first.rank, first.world_size, first.local_rank, first.master_address) == (5, 28, 1, "gpu03")
    assert first.master_port != second.master_port
    assert first.launcher == "srun"


def test_the_processes_of_a_machine_are_known_where_the_launcher_tells():
    torchrun = {"RANK": "3", "WORLD_SIZE": "16"}
    assert read_environment(torchrun).local_world_size is None
    assert read_environment({**torchrun, "LOCAL_WORLD_SIZE": "8"}).local_world_size == 8
    for node, count in (("0", 8), ("2", 8), ("3", 4), ("4", None)):
        assert read_environment({**SRUN, "SLURM_NODEID": node}).local_world_size == count


def test_a_plain_python_in_a_batch_script_is_a_world_of_one_whatever_the_job_is_given():
    """The script has the job's variables, as its tasks have, and the rank of the first one."""
    environment = read_environment(BATCH_SCRIPT)
    assert environment == ProcessEnvironment()
    (warning,) = launch_warnings(environment, BATCH_SCRIPT)
    assert "28 tasks" in warning and "srun" in warning
    assert launch_warnings(read_environment({**BATCH_SCRIPT, **SRUN}), {**BATCH_SCRIPT, **SRUN}) == []


def test_a_step_of_one_task_in_a_job_of_many_is_a_world_of_one():
    assert read_environment({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}).world_size == 1


def test_srun_with_fewer_tasks_than_the_job_is_a_world_of_these_on_the_nodes_of_the_step():
    env = {**BATCH_SCRIPT, **SRUN, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "gpu[05,07]"}
    environment = read_environment(env)
    assert (environment.world_size, environment.master_address) == (4, "gpu05")


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[03-07,11],login1", "gpu03"),
        ("a[5,9]", "a5"),
        ("rack1-[2-3]-ib", "rack1-2-ib"),
        ("a[1-3,05-07]b[1,2]", "a1b1"),
        ("r[01-02]s[3-4]n[10,12]-ib.cluster,login1", "r01s3n10-ib.cluster"),
        ("tux[0-2,5][1-2]", "tux01"),
        ("[7-9]", "7"),
        (" n1 ", "n1"),
    ],
)
def test_the_first_host_of_a_compressed_list(node_list, host):
    assert first_slurm_host(node_list) == host


@pytest.mark.parametrize("node_list", ["", ",a", "a[1-2", "a]1", "a[]", "a[1-2]]"])
def test_what_is_no_list_of_hosts_is_refused_with_a_remedy(node_list):
    with pytest.raises(ConfigurationError, match="SLURM_STEP_NODELIST is .*MASTER_ADDR"):
        first_slurm_host(node_list)


def test_a_broken_variable_is_named_with_a_remedy():
    with pytest.raises(ConfigurationError, match="RANK is 'x'.*torchrun"):
        read_environment({"RANK": "x", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("given", "launcher", "tensor_parallel", "wanted"),
    [
        (None, "torchrun", False, None),
        (None, "srun", True, "1"),
        ("8", "torchrun", True, "8"),
        ("8", "torchrun", False, "8"),
        ("1", "srun", False, "1"),
        ("1", "torchrun", False, None),  # `colossalai run` says so to all that it starts
        ("1", "torchrun", True, "1"),
    ],
)
def test_device_connections_are_one_for_tensor_parallelism_and_else_what_the_user_says(
    given, launcher, tensor_parallel, wanted
):
    assert device_connections(given, launcher, tensor_parallel) == wanted
