"""A real Slurm, which `make test-slurm` starts for the tests in this folder: a node, and two more on this machine."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import eventually

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerNode=1500
KillWait=5
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
JobRequeue=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=8000
NodeName=a NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
NodeName=b NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[3]} CPUs=2 RealMemory=4000
PartitionName=main Nodes={host} Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes={host} PriorityTier=2
PartitionName=pair Nodes=a,b
"""


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start the daemons in a folder of their own, and end them with the tests."""
    if not request.config.getoption("--slurm"):
        pytest.skip("needs a Slurm, which `make test-slurm` starts")
    if missing := [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]:
        pytest.skip(f"needs {missing[0]}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("needs root: the daemons of Slurm start jobs for any user")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a socket's path is short
    daemons: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch, (folder / "daemons.log").open("wb") as log:

        def start(*command: str) -> None:
            daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

        patch.setenv("PATH", _path())
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            host = _configure(folder)
            files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
            start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
            eventually((folder / "munge.socket").exists)
            start("slurmctld", "-D", "-c")
            for name in (host, "a", "b"):
                start("slurmd", "-D", "-N", name)
            eventually(lambda: _output("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * 4)
            yield
        except AssertionError:
            sys.stderr.write((folder / "daemons.log").read_text(errors="replace"))
            raise
        finally:
            subprocess.run(["scancel", "--me"], capture_output=True)  # the jobs would outlive the daemons
            eventually(lambda: not _output("squeue", "--me", "--noheader"))
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> str:
    """Write the configuration. Returns the name of the node."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(4)]
        for each in opened:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in opened]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, ports=ports, folder=folder))
    return host


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.fixture
def slurm(cluster: None) -> Callable[..., str]:
    """`slurm("scancel", "12")` runs a command of Slurm and returns what it prints."""

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run
