"""Environments of clusters: which task a process is, and what it becomes."""

import socket

import pytest

from llmctl.errors import ConfigError
from llmctl.parallel.launch import Devices
from llmctl.parallel.machines.clusters import first_host, recognise, tasks_per_node
from llmctl.parallel.machines.nodes import Nodes
from llmctl.parallel.machines.start import Options, Start, check_restarts, decide


def slurm(number=0, tasks=2, nodes=2, **more):
    each = tasks // nodes
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number % each),
        "SLURM_NODEID": str(number // each),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})" if nodes > 1 else str(each),
        "SLURM_STEP_NODELIST": "localhost,gpu[07-09]",
        **more,
    }


def mpi(number=0, size=4, local_size=4, **more):
    return {
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_SIZE": str(size),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number % local_size),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(local_size),
        "PMIX_NAMESPACE": "prterun-host-1@1",
        **more,
    }


def paddlejob(number=0, size=2, **more):
    return {
        "PADDLE_TRAINER_ID": str(number),
        "PADDLE_TRAINERS_NUM": str(size),
        "PADDLE_TRAINERS": ",".join(["127.0.0.1"] * size),
        "PADDLE_TRAINER_ENDPOINTS": ",".join(["127.0.0.1:2379"] * size),
        "PADDLE_PORT": "2379",
        "POD_IP": "127.0.0.1",
        **more,
    }


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu[03-05,09],login1", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("a,b[1-2]", "a"),
        ("rack[1-2]node[04-08]", "rack1node04"),
    ],
)
def test_the_first_machine_of_a_list(text, host):
    assert first_host(text) == host


def test_tasks_of_each_machine():
    assert tasks_per_node("8(x2),4") == [8, 8, 4] and tasks_per_node("3") == [3]


def test_a_task_of_srun_is_a_rank_with_the_first_machine_as_master():
    start = decide(Options(), slurm(3, tasks=4))
    assert start.size == 4 and not start.launches
    made = start.variables
    assert (made["PADDLE_TRAINER_ID"], made["PADDLE_TRAINERS_NUM"], made["PADDLE_LOCAL_RANK"]) == ("3", "4", "1")
    assert made["PADDLE_MASTER"].startswith("localhost:2") and made["LLMCTL_NODES"] == "2"
    assert len(made["PADDLE_TRAINER_ENDPOINTS"].split(",")) == 4
    assert made["PADDLE_TRAINER_ENDPOINTS"].split(",")[3] == made["PADDLE_CURRENT_ENDPOINT"]
    assert decide(Options(), slurm(0, tasks=4)).variables["PADDLE_MASTER"] == made["PADDLE_MASTER"]


def test_task_0_names_a_port_that_is_in_use():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        place = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"--master {place}: the port is in use on this machine"):
            decide(Options(master=place), slurm(0))
        assert decide(Options(master=place), slurm(1)).variables["PADDLE_MASTER"] == place


def test_one_task_a_machine_starts_the_processes_of_the_machine():
    start = decide(Options(devices="8"), slurm(1))
    assert (start.size, start.launches, start.devices, start.variables) == (16, True, Devices(8), {})
    assert (start.nodes.count, start.nodes.number, start.nodes.host) == (2, 1, "localhost")
    assert 20000 <= start.nodes.port < 30000


def test_several_tasks_a_machine_with_devices_are_ambiguous():
    with pytest.raises(ConfigError, match=r"Slurm started 4 tasks on 2 machines, and --devices .* leave --devices out"):
        decide(Options(devices="2"), slurm(tasks=4))


def test_a_batch_script_and_a_step_of_one_task_train_alone():
    script = {name: value for name, value in slurm(tasks=4).items() if "STEP" not in name}
    assert decide(Options(), script) == Start(1)
    assert decide(Options(), slurm(tasks=1, nodes=1)) == Start(1)


def test_threads_and_gpus_are_those_that_slurm_gave_to_the_task():
    made = decide(Options(), slurm(1, tasks=2, nodes=1, SLURM_CPUS_PER_TASK="6", CUDA_VISIBLE_DEVICES="5")).variables
    assert made["LLMCTL_THREADS"] == "6" and made["FLAGS_selected_gpus"] == "0"
    made = decide(Options(), slurm(1, tasks=2, nodes=1, OMP_NUM_THREADS="3", CUDA_VISIBLE_DEVICES="0,1")).variables
    assert "LLMCTL_THREADS" not in made and made["FLAGS_selected_gpus"] == "1"
    assert int(decide(Options(), slurm(SLURM_CPUS_PER_TASK="x")).variables["LLMCTL_THREADS"]) > 0


def test_flags_win_over_the_cluster():
    start = decide(Options(devices="2", nnodes=2, node_rank=0, master="127.0.0.1:99", interface="lo"), slurm(1))
    assert start.nodes == Nodes(2, 0, "127.0.0.1", 99, "lo")
    assert decide(Options(master="localhost:99"), slurm(1)).variables["PADDLE_MASTER"] == "localhost:99"
    assert decide(Options(nnodes=1, devices="2"), slurm(1)).nodes == Nodes()
    assert decide(Options(cluster="none"), slurm(1)) == Start(1)


def test_mpirun_on_one_machine_needs_no_address():
    made = decide(Options(), mpi(2)).variables
    assert made["PADDLE_TRAINER_ID"] == "2" and made["PADDLE_MASTER"].startswith("127.0.0.1:2")


def test_mpirun_on_several_machines_says_what_it_lacks():
    far = mpi(5, size=8)
    with pytest.raises(
        ConfigError, match=r"Open MPI started 8 tasks on 2 machines, .*--master HOST:PORT, or in .*MASTER_ADDR"
    ):
        decide(Options(), far)
    assert decide(Options(master="localhost:99"), far).variables["PADDLE_MASTER"] == "localhost:99"
    given = {**far, "MASTER_ADDR": "localhost", "MASTER_PORT": "77"}
    assert decide(Options(), given).variables["PADDLE_MASTER"] == "localhost:77"
    # In an allocation of Slurm its first machine has task 0, and mpirun is what started the processes.
    inside = decide(Options(), {**slurm(), **far}).variables
    assert inside["PADDLE_MASTER"].startswith("localhost:") and inside["PADDLE_TRAINER_ID"] == "5"


def test_a_pod_of_paddles_operator_is_a_machine_or_a_rank():
    start = decide(Options(devices="8"), paddlejob(1))
    assert start.nodes == Nodes(2, 1, "127.0.0.1", 2379) and start.size == 16
    assert decide(Options(), paddlejob(1)).variables["PADDLE_MASTER"] == "127.0.0.1:2379"


def test_a_pod_of_an_indexed_job_has_its_number_and_the_rest_from_options():
    start = decide(Options(devices="8", nnodes=4, master="localhost:6170"), {"JOB_COMPLETION_INDEX": "3"})
    assert start.nodes == Nodes(4, 3, "localhost", 6170)
    # Jobs of several independent trainings have numbers too.
    assert decide(Options(), {"JOB_COMPLETION_INDEX": "3"}) == Start(1)
    with pytest.raises(ConfigError, match="--nnodes 2 needs --node-rank, .* from 0 to 1, not 3"):
        decide(Options(nnodes=2, master="localhost:6170"), {"JOB_COMPLETION_INDEX": "3"})


def test_two_clusters_at_once_are_ambiguous():
    both = {**slurm(), **paddlejob()}
    with pytest.raises(ConfigError, match="that of slurm and of paddlejob; choose one with --cluster"):
        decide(Options(), both)
    assert recognise(both, "slurm").name == "Slurm"


RANK = {
    "PADDLE_TRAINER_ID": "1",
    "PADDLE_TRAINERS_NUM": "2",
    "PADDLE_CURRENT_ENDPOINT": "127.0.0.1:9",
    "PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:8,127.0.0.1:9",
    "PADDLE_MASTER": "127.0.0.1:7",
}
"""Of one of two processes of Paddle's launcher."""


@pytest.mark.parametrize(
    "given", [{"devices": "2"}, {"nnodes": 2}, {"node_rank": 0}, {"master": "a:1"}, {"interface": "lo"}]
)
def test_a_process_of_another_launcher_starts_no_more(given):
    assert decide(Options(), RANK) == Start(2)
    name = next(iter(given)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name}: this process is number 1 of 2 that another launcher started"):
        decide(Options(**given), RANK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PADDLE_MASTER": None}, "so PADDLE_MASTER must have HOST:PORT"),
        ({"PADDLE_CURRENT_ENDPOINT": "x"}, "so PADDLE_CURRENT_ENDPOINT must have HOST:PORT, .* not x"),
        ({"PADDLE_TRAINER_ENDPOINTS": None}, "so PADDLE_TRAINER_ENDPOINTS must have HOST:PORT"),
        ({"PADDLE_TRAINER_ENDPOINTS": "127.0.0.1:9"}, "must have 2 addresses, that of rank 1 being .*=127.0.0.1:9"),
        ({"PADDLE_TRAINER_ID": "0"}, "that of rank 0 being PADDLE_CURRENT_ENDPOINT=127.0.0.1:9"),
    ],
)
def test_a_process_of_another_launcher_must_know_the_addresses(changes, message):
    environ = {name: value for name, value in {**RANK, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        decide(Options(), environ)


@pytest.mark.parametrize(("size", "number"), [("WORLD_SIZE", "RANK"), ("PMI_SIZE", "PMI_RANK")])
def test_processes_of_a_program_that_is_not_known_do_not_train_side_by_side(size, number):
    with pytest.raises(ConfigError, match=f"{size}=2 and {number}=1, .* would train alone; .*--cluster none"):
        decide(Options(devices="2"), {size: "2", number: "1"})
    for options, environ in (
        (Options(), {size: "1", number: "0"}),
        (Options(cluster="none"), {size: "2", number: "1"}),
    ):
        assert decide(options, environ) == Start(1)
    given = Options(nnodes=2, node_rank=1, master="localhost:6170")
    assert decide(given, {size: "2", number: "1"}).nodes == Nodes(2, 1, "localhost", 6170)
    # Slurm may start processes by the protocol of MPICH.
    assert decide(Options(), slurm(1, **{size: "2", number: "1"})).size == 2


def test_restarts_are_those_of_processes_that_this_one_starts():
    check_restarts(2, decide(Options(devices="2"), {}))
    with pytest.raises(ConfigError, match="--max-restarts 2 has no effect: it is one process; add --devices"):
        check_restarts(2, decide(Options(), {}))
    with pytest.raises(ConfigError, match="as one of 2 and is to start it again; leave it out"):
        check_restarts(2, decide(Options(), slurm(1)))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            slurm(SLURM_PROCID="x"),
            "variables of slurm in the environment do not fit .* SLURM_PROCID='x' is not a number",
        ),
        (slurm(SLURM_PROCID="9"), "would be task 9 of 2, counted from 0; .* --cluster none"),
        (slurm(SLURM_LOCALID="1"), "task of its machine 1 of 1"),
        (slurm(SLURM_STEP_NUM_NODES="0"), "SLURM_STEP_NUM_NODES='0' is not a number of 1 or more"),
        ({name: value for name, value in slurm().items() if name != "SLURM_NODEID"}, "SLURM_NODEID is missing"),
        (slurm(SLURM_NODEID="5"), r"SLURM_STEP_TASKS_PER_NODE='1\(x2\)' has no number for SLURM_NODEID=5"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="x"), "SLURM_STEP_TASKS_PER_NODE='x'"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="1(x99999999999)"), "has no number for SLURM_NODEID=0"),
        (slurm(SLURM_STEP_TASKS_PER_NODE="1(x2"), "has no number for SLURM_NODEID=0"),
        (slurm(SLURM_PROCID="\N{SUPERSCRIPT TWO}"), "SLURM_PROCID='\N{SUPERSCRIPT TWO}' is not a number"),
        (mpi(OMPI_COMM_WORLD_SIZE="99999999999"), "OMPI_COMM_WORLD_SIZE=99999999999 is more than 1000000"),
        (mpi(OMPI_COMM_WORLD_SIZE="9" * 5000), "OMPI_COMM_WORLD_SIZE='9+' is not a number"),
        (slurm(MASTER_PORT="x"), "MASTER_PORT must give HOST:PORT, .* not localhost:x"),
        (slurm(MASTER_ADDR="a:1"), "MASTER_ADDR must give HOST:PORT, .* not a:1:2"),
        (mpi(OMPI_COMM_WORLD_SIZE=""), "variables of openmpi .* OMPI_COMM_WORLD_SIZE=''"),
        (mpi(OMPI_COMM_WORLD_LOCAL_SIZE="0"), "OMPI_COMM_WORLD_LOCAL_SIZE='0' is not a number of 1 or more"),
        (paddlejob(PADDLE_TRAINERS="127.0.0.1"), "PADDLE_TRAINERS has 1 of PADDLE_TRAINERS_NUM=2 addresses"),
        (paddlejob(PADDLE_PORT="70000"), "PaddleJob must give HOST:PORT, .* not 127.0.0.1:70000"),
    ],
)
def test_variables_that_do_not_fit_each_other(environ, message):
    with pytest.raises(ConfigError, match=message):
        decide(Options(), environ)


@pytest.mark.parametrize("text", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", ""])
def test_a_variable_that_is_no_number_says_nothing(text):
    assert decide(Options(), {"WORLD_SIZE": text, "RANK": "0"}) == Start(1)
    made = decide(Options(), slurm(SLURM_CPUS_PER_TASK=text)).variables
    assert int(made["LLMCTL_THREADS"]) > 0
    with pytest.raises(ConfigError, match="--nnodes 2 needs --node-rank"):
        decide(Options(nnodes=2, master="localhost:99"), {"JOB_COMPLETION_INDEX": text})


def test_an_empty_variable_gives_no_address():
    empty, without = (
        decide(Options(), slurm(1, **more)).variables for more in ({"MASTER_ADDR": "", "MASTER_PORT": ""}, {})
    )
    assert empty["PADDLE_MASTER"] == without["PADDLE_MASTER"]


def test_a_cluster_that_is_not_there_is_not_chosen():
    with pytest.raises(ConfigError, match="--cluster slurm: its variables are not in the environment"):
        decide(Options(cluster="slurm"), {})
