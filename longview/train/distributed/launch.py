"""Start a run in several processes, on one machine or on many, by torchrun's own launcher.

Every machine is given the same command, by hand, by a loop over ssh or by a scheduler. A `hostfile` names the machines
and how many processes each takes, as DeepSpeed's do; a machine finds itself in it by its name or address.

    # comment
    node-1 slots=8
    node-2 slots=8
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from longview.errors import RecipeError
from longview.train.distributed import processes

PORT = 29500
"""The default port of the first machine; torchrun's own."""


class Launch(NamedTuple):
    """The processes of a run, as one of the machines starts them."""

    processes: int  # on this machine
    machines: int = 1
    number: int = 0  # of this machine, from 0
    first: str = "127.0.0.1"  # the address of machine 0
    port: int = PORT

    def options(self) -> list[str]:
        """As torchrun takes them."""
        here = [f"--nproc-per-node={self.processes}"]
        if self.machines == 1:
            return [*here, "--standalone"]
        place = [f"--nnodes={self.machines}", f"--node-rank={self.number}"]
        return [*here, *place, f"--master-addr={self.first}", f"--master-port={self.port}"]


def make_launch(
    nproc_per_node: int | None,
    nnodes: int | None = None,
    node_rank: int | None = None,
    master_addr: str | None = None,
    hostfile: Path | None = None,
) -> Launch | None:
    """What the options of `longview train` come to; None where there are none, and nothing is to be started.

    Raises:
        RecipeError: they contradict each other, or say too little.
    """
    if hostfile is None and nproc_per_node is None:
        given = {"--nnodes": nnodes, "--node-rank": node_rank, "--master-addr": master_addr}
        for option, value in given.items():
            if value is not None:
                raise RecipeError(f"{option} needs --nproc-per-node: how many processes each machine starts")
        return None
    if processes.count() > 1:
        raise RecipeError("these processes were started by torchrun; leave out --nproc-per-node and --hostfile")
    address, port = _address(master_addr)
    if hostfile is not None:
        if nnodes is not None or nproc_per_node is not None:
            raise RecipeError(
                f"{hostfile} says how many machines and processes there are; leave out --nnodes and --nproc-per-node"
            )
        return _from_hosts(hostfile, read_hosts(hostfile), node_rank, address, port)
    assert nproc_per_node is not None
    machines = 1 if nnodes is None else nnodes
    if nproc_per_node < 1 or machines < 1:
        raise RecipeError(f"--nproc-per-node is {nproc_per_node} and --nnodes {machines}; give 1 or more")
    if machines == 1:
        return Launch(nproc_per_node)
    if node_rank is None or address is None:
        raise RecipeError(
            f"--nnodes is {machines}, so each machine needs --node-rank (0 to {machines - 1}) and --master-addr "
            "HOST:PORT, of machine 0; or give all of them a --hostfile"
        )
    return Launch(nproc_per_node, machines, _number(node_rank, machines), address, port)


def _address(text: str | None) -> tuple[str | None, int]:
    if text is None:
        return None, PORT
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\s\[\]]+)(?::([0-9]{1,5}))?", text)
    if not found or int(found[2] or PORT) > 65535:
        raise RecipeError(f"--master-addr is {text!r:.80}; expected HOST or HOST:PORT")
    return found[1].strip("[]"), int(found[2] or PORT)


def _number(node_rank: int, machines: int) -> int:
    if not 0 <= node_rank < machines:
        raise RecipeError(f"--node-rank is {node_rank}; the {machines} machines have the numbers 0 to {machines - 1}")
    return node_rank


def read_hosts(path: Path) -> dict[str, int]:
    """The machines of a hostfile, in its order, and how many processes each takes.

    Raises:
        RecipeError: it cannot be read, or a line of it is not understood.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise RecipeError(f"hostfile {path} cannot be read ({reason})") from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"(\S+)\s+slots=([0-9]{1,4})", text)
        if not found or not int(found[2]):
            raise RecipeError(f"{path}, line {number} is {text!r:.80}; expected HOST slots=8")
        if found[1] in hosts:
            raise RecipeError(f"{path}, line {number} names {found[1]} again; name each machine once")
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise RecipeError(f"hostfile {path} names no machine; write a line HOST slots=8 for each")
    return hosts


def _from_hosts(path: Path, hosts: dict[str, int], node_rank: int | None, address: str | None, port: int) -> Launch:
    names = list(hosts)
    if node_rank is None:
        here = [number for number, name in enumerate(names) if _is_here(name)]
        if len(here) != 1:
            what = "none" if not here else f"{len(here)}"
            raise RecipeError(
                f"{what} of the machines in {path} ({', '.join(names)}) is {socket.gethostname()}, where this runs; "
                f"say which it is by --node-rank, 0 to {len(names) - 1}"
            )
        node_rank = here[0]
    number = _number(node_rank, len(names))
    return Launch(hosts[names[number]], len(names), number, address or names[0], port)


def _is_here(name: str) -> bool:
    """Whether a name or address is this machine's: only then can something listen there."""
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as listener:
                listener.bind(address)
                return True
        except OSError:
            continue
    return False


def start(launch: Launch, arguments: Sequence[str]) -> int:
    """Start this machine's processes of `longview ARGUMENTS`, and wait for them; returns the exit code.

    Their errors are theirs to print; the launcher's own messages are suppressed.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith(("torch.distributed.run", "torch.distributed.elastic")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args([*launch.options(), "-m", "longview", *arguments]))
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException:
        return 130
    return 0
