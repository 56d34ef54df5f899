import pytest

from llama_dyt.boosters.launch import first_slurm_host, read_environment
from llama_dyt.errors import ConfigurationError


def test_a_plain_process_is_a_world_of_one():
    environment = read_environment({})
    assert (environment.rank, environment.world_size, environment.launcher) == (0, 1, "python")


def test_torchruns_variables_are_read():
    env = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "1234"}
    environment = read_environment(env)
    assert (environment.rank, environment.world_size, environment.local_rank) == (3, 8, 1)
    assert (environment.master_address, environment.master_port) == ("node0", 1234)


def test_slurms_variables_are_read_and_two_jobs_get_two_ports():
    env = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_NODELIST": "gpu[03-04]"}
    first = read_environment({**env, "SLURM_JOB_ID": "100"})
    second = read_environment({**env, "SLURM_JOB_ID": "101"})
    assert (first.rank, first.world_size, first.local_rank, first.master_address) == (5, 16, 1, "gpu03")
    assert first.master_port != second.master_port
    assert first.launcher == "srun"


def test_the_processes_of_a_machine_are_known_where_the_launcher_tells():
    torchrun = {"RANK": "3", "WORLD_SIZE": "16"}
    assert read_environment(torchrun).local_world_size is None
    assert read_environment({**torchrun, "LOCAL_WORLD_SIZE": "8"}).local_world_size == 8
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_NODELIST": "a", "SLURM_NTASKS_PER_NODE": "4"}
    assert read_environment(slurm).local_world_size == 4


def test_an_interactive_slurm_shell_of_one_task_is_a_world_of_one():
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}).world_size == 1


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[03-07,11],login1", "gpu03"),
        ("a[5,9]", "a5"),
        ("rack1-[2-3]-ib", "rack1-2-ib"),
    ],
)
def test_the_first_host_of_a_compressed_list(node_list, host):
    assert first_slurm_host(node_list) == host


def test_a_broken_variable_is_named_with_a_remedy():
    with pytest.raises(ConfigurationError, match="RANK is 'x'.*torchrun"):
        read_environment({"RANK": "x", "WORLD_SIZE": "2"})
