"""A cluster on this machine alone, reached by ssh: up, three jobs, and down again.

    python tests/cluster/ray_up.py

It does what docs/cluster.md says for machines of one's own, with one machine that is both laptop
and head: an sshd of its own on loopback, experiments/cluster/local.yaml with the changes that one
shared machine needs, `ray up`, the tunnel of `ray dashboard`, digits by `ray job submit` and by
`kdfm submit`.
Keys, token, home folders, ports and logs are made for it in a temporary folder. It runs neither
`ray stop` nor `ray down`, which signal every Ray process of the machine: at its end it ends the
processes that it started, by their ids.

Needs sshd (Debian's openssh-server), ssh and rsync. Took 4 minutes on 2 CPU cores, 9 on cores that
were busy with other work.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent.parent
LOCAL = ROOT / "experiments" / "cluster" / "local.yaml"
BIN = Path(sys.prefix) / "bin"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STEPS = 60
USES = ("sshd", "gcs", "dashboard", "tunnel", "agent", "client", "node", "objects")
KDFM = ["kdfm", "train", "digits", "--recipe", "paper", "--baseline", "no"]
KDFM += ["--scale.num-workers", "1"]
KDFM += ["--faults.save-every", "10"]
# After so few steps nothing is confident: without this the trusted subset would be empty.
KDFM += ["--select.tau-select", "0.1", "--select.pretrain-epochs", "2", "--select.max-iter", "300"]
# As long as `ray job stop` waits for a job to save before it kills; Ray's own 3 s may be too short.
PATIENT = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
# Ray shortens what it overwrites, and colors what it prints through ssh.
COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def main() -> int:
    """Run all steps; 0 if they went as they should."""
    missing = [tool for tool in ("sshd", "ssh", "ssh-keygen", "rsync") if not which(tool)]
    if missing:
        print(f"not installed: {', '.join(missing)} (Debian: openssh-server, rsync)")
        return 2
    with Demo.made() as demo, demo.sshd():
        demo.bring_up()
        with demo.tunnel():
            demo.refuses_strangers()
            demo.submits_stops_and_goes_on()
    print(f"all steps done in {time.monotonic() - demo.begun:.0f} s")
    return 0


def which(tool: str) -> str | None:
    """Its path; sshd lies where only root looks."""
    return shutil.which(tool, path=f"{os.environ['PATH']}:{SYSTEM_PATH}")


@dataclass
class Demo:
    """The temporary folder, and what runs from it.

    Attributes:
        folder: `laptop` and `head` in it are the home folders of both sides.
        ports: that are free now, by use.
        begun: by the monotonic clock.
    """

    folder: Path
    ports: dict[str, int]
    begun: float = field(default_factory=time.monotonic)

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Demo]:
        """A folder with keys, homes and the cluster file; nothing of it is left at the end."""
        # A short path: those of Ray's unix sockets may have 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="kdfm-", dir="/tmp"))
        demo = cls(folder, dict(zip(USES, free_ports(len(USES)), strict=True)))
        try:
            demo._make_homes()
            demo._write_cluster_file()
            yield demo
        finally:
            demo.take_down()
            shutil.rmtree(folder, ignore_errors=True)
            # Where Ray keeps ssh connections open, by a hash of the cluster's name.
            name = hashlib.sha256(folder.name.encode()).hexdigest()[:10]
            for sockets in Path("/tmp").glob(f"ray_ssh_*/{name}"):
                shutil.rmtree(sockets, ignore_errors=True)
                with contextlib.suppress(OSError):  # those of other clusters are still there
                    sockets.parent.rmdir()

    @property
    def cluster_file(self) -> str:
        """What `ray up` is given."""
        return str(self.folder / "cluster.yaml")

    @property
    def dashboard(self) -> str:
        """Where the tunnel ends on the laptop's side."""
        return f"http://127.0.0.1:{self.ports['tunnel']}"

    def _make_homes(self) -> None:
        for name in ("laptop", "laptop/bin", "head", "tmp-laptop", "tmp-head"):
            (self.folder / name).mkdir()
        for key in ("host_key", "user_key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key], check=True
            )
        # Ray has no field for ssh's port. Elsewhere ~/.ssh/config would say it; ssh takes that file
        # from the password database, not from HOME, so here it is said to ssh itself.
        ssh = self.folder / "laptop" / "bin" / "ssh"
        ssh.write_text(f'#!/bin/sh\nexec {which("ssh")} -F none -p {self.ports["sshd"]} "$@"\n')
        ssh.chmod(0o700)
        # The environment in which local.yaml would install the project is the one that runs this:
        # jobs use the code they bring along.
        (self.folder / "head" / "venv").symlink_to(sys.prefix)
        (self.folder / "head" / ".bashrc").write_text("# of the head\n")

    def _write_cluster_file(self) -> None:
        """local.yaml, but for what one machine that others use, too, cannot share."""
        config = yaml.safe_load(LOCAL.read_text())
        # A name of its own: ssh connections are kept open under it, and found by it.
        config["cluster_name"] = self.folder.name
        config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
        config |= {"min_workers": 0, "max_workers": 0}
        config["auth"] = {
            "ssh_user": getpass.getuser(),
            "ssh_private_key": str(self.folder / "user_key"),
        }
        # The environment is there already, and must not be changed.
        config["setup_commands"] = [
            command for command in config["setup_commands"] if "venv/bin/p" not in command
        ]
        # Without `ray stop`, and on ports that are free.
        start = next(each for each in config["head_start_ray_commands"] if "ray start" in each)
        # The only machine: it has to compute, too.
        assert " --num-cpus=0" in start
        start = start.replace(" --num-cpus=0", "")
        flags = {
            "--port": "gcs",
            "--dashboard-port": "dashboard",
            "--dashboard-agent-listen-port": "agent",
            "--ray-client-server-port": "client",
            "--node-manager-port": "node",
            "--object-manager-port": "objects",
        }
        own = " ".join(f"{flag}={self.ports[use]}" for flag, use in flags.items())
        assert "--port=6379" in start
        config["head_start_ray_commands"] = [start.replace("--port=6379", own)]
        config["worker_start_ray_commands"] = []
        Path(self.cluster_file).write_text(yaml.safe_dump(config, sort_keys=False))

    @contextlib.contextmanager
    def sshd(self) -> Iterator[None]:
        """An ssh server on loopback whose sessions live in the head's home."""
        # Ray's own settings: all ports on loopback, its files in this folder, no statistics sent.
        session = {
            "HOME": self.folder / "head",
            "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}",
            "RAY_TMPDIR": self.folder / "tmp-head",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        lines = [
            f"ListenAddress 127.0.0.1:{self.ports['sshd']}",
            f"HostKey {self.folder}/host_key",
            f"AuthorizedKeysFile {self.folder}/user_key.pub",
            f"PidFile {self.folder}/sshd.pid",
            "SetEnv " + " ".join(f"{name}={value}" for name, value in session.items()),
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "StrictModes no",  # the folder lies in /tmp, to which others may write
            "UsePAM no",
            "PrintMotd no",
            "PrintLastLog no",
            f"AllowUsers {getpass.getuser()}",
        ]
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it when root starts it
        server = which("sshd")
        assert server is not None  # sshd starts itself again by this path, so it has to be whole
        with (self.folder / "sshd.log").open("w") as log:
            process = subprocess.Popen(
                [server, "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log
            )
        try:
            wait_for_port(self.ports["sshd"], process)
            print(f"sshd listens on 127.0.0.1:{self.ports['sshd']}")
            yield
        finally:
            process.terminate()
            process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """The laptop's: nothing of this process's own but where programs are."""
        path = [self.folder / "laptop" / "bin", BIN, os.environ["PATH"], SYSTEM_PATH]
        return {
            "HOME": str(self.folder / "laptop"),
            "PATH": ":".join(map(str, path)),
            "PYTHONPATH": str(ROOT),  # this project's kdfm, wherever the environment's is from
            "TMPDIR": str(self.folder / "tmp-laptop"),
            "RAY_TMPDIR": str(self.folder / "tmp-laptop"),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "LANG": "C.UTF-8",
        }

    def run(self, *command: str, show: bool = True, ends: int = 0) -> str:
        """Run a command as on the laptop, in the project's folder; print it and what it prints.

        Args:
            command: with arguments.
            show: whether to print what it prints.
            ends: the exit status it must have.

        Returns:
            What it printed, without colors.
        """
        print(f"\n$ {self.shown(' '.join(command))}", flush=True)
        began, lines = time.monotonic(), []
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(COLORS.sub("", line).rstrip())
            if show:
                print("  " + self.shown(lines[-1]), flush=True)
        status = process.wait()
        print(f"  ({time.monotonic() - began:.1f} s, exit status {status})", flush=True)
        text = "\n".join(lines)
        if status != ends:
            raise AssertionError(f"{command} ended with {status}:\n{text[-3000:]}")
        return text

    def shown(self, text: str) -> str:
        """With the same names in place of this run's folders on every machine."""
        return text.replace(str(self.folder), "$DEMO").replace(str(ROOT), "$PROJECT")

    def bring_up(self) -> None:
        """The token, `ray up`, and that nothing of it listens beyond loopback."""
        token = self.folder / "laptop" / ".ray" / "auth_token"
        self.run("ray", "get-auth-token", "--generate", show=False)
        token.chmod(0o600)
        plain = ["--log-style", "pretty", "--log-color", "false"]
        text = self.run("ray", "up", "-y", "--no-config-cache", *plain, self.cluster_file)
        assert "Ray runtime started" in text
        mine = {process.pid: name_of(process) for process in self.processes()}
        listening = [
            (mine[each.pid], each.laddr)
            for each in psutil.net_connections("tcp")
            if each.pid in mine and each.status == psutil.CONN_LISTEN
        ]
        loopback = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
        beyond = [each for each in listening if each[1].ip not in loopback]
        print(
            f"\n{len(mine)} processes listen on {len(listening)} ports; beyond loopback: {beyond}"
        )
        assert listening
        assert not beyond

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[None]:
        """`ray dashboard`, which forwards the head's port for jobs by ssh."""
        command = ["ray", "dashboard", "--no-config-cache", self.cluster_file]
        command += ["--port", str(self.ports["tunnel"])]
        command += ["--remote-port", str(self.ports["dashboard"])]
        print(f"\n$ {self.shown(' '.join(command))} &")
        with (self.folder / "tunnel.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_for_port(self.ports["tunnel"], process)
            yield
        finally:
            process.terminate()
            process.wait()

    def refuses_strangers(self) -> None:
        """No token, a wrong one, the right one."""
        right = (self.folder / "laptop" / ".ray" / "auth_token").read_text().strip()
        tokens = {"without a token": None, "with a wrong token": "0" * 64, "with the token": right}
        answers = {}
        for name, token in tokens.items():
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            request = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answers[name] = answer.status
            except urllib.error.HTTPError as error:
                answers[name] = error.code
            print(f"GET /api/jobs/ {name}: {answers[name]}")
        assert list(answers.values()) == [401, 403, 200], answers

    def submits_stops_and_goes_on(self) -> None:
        """The digits preset, stopped on its way; again, to its end; again, with nothing to do."""
        plain = ["--log-style", "pretty", "--log-color", "false"]
        at = ["--address", self.dashboard, *plain]
        store, run = self.folder / "store", self.folder / "run"
        command = [*KDFM, "--train.steps", str(STEPS), "--train.eval-every", str(STEPS // 2)]
        command += ["--store", str(store)]

        def submit(name: str, *flags: str) -> None:
            first = ["ray", "job", "submit", *at, "--working-dir", ".", "--submission-id", name]
            first += ["--runtime-env-json", PATIENT]
            self.run(*first, *flags, "--", *command, "--out", str(run))

        submit("first", "--no-wait")
        # A saved state of the outer network, which is not finished: now is the time to stop.
        try:
            saved = "states/outer/*/*/manifest.json"
            wait_for(lambda: any(store.glob(saved)), "a saved state", seconds=900)
        except AssertionError:
            self.run("ray", "job", "logs", *at, "first")
            raise
        by_ray = self._print_upload(set(), 1_500_000)
        assert "was stopped" in self.run("ray", "job", "stop", *at, "first")
        assert "was stopped" in self.run("ray", "job", "status", *at, "first")
        self.run("ray", "job", "logs", *at, "first")

        submit("second")
        assert "succeeded" in self.run("ray", "job", "status", *at, "second")
        assert "KD-FixMatch" in self.run("ray", "job", "logs", *at, "second", show=False)
        resumed = json.loads((run / "report.json").read_text())["resumed"]
        print(f"networks that went on, and after which update: {resumed}")
        assert resumed["outer"]

        # No run folder is given: it is in the store, which has all that it is written from.
        text = self.run("kdfm", "submit", *command[1:], "--address", self.dashboard)
        assert "reused" in text
        third, size = self._told(text)
        assert size < 500
        self._print_upload(by_ray, 1_500_000)
        (again,) = (store / "runs").iterdir()
        files = sorted(path.name for path in again.iterdir())
        print(f"{again.relative_to(self.folder)}: {', '.join(files)}")
        for name in ("model.safetensors", "split.npz"):
            assert (again / name).read_bytes() == (run / name).read_bytes(), name
        self._print_ends(at, {"first": "STOPPED", "second": "SUCCEEDED", third: "SUCCEEDED"})

    def _told(self, text: str) -> tuple[str, int]:
        """The id that `kdfm submit` tells, and the KB that it has sent."""
        found = re.search(r"submitted as (\S+), with \d+ files \((\d+) KB\)", text)
        assert found is not None, text
        return found[1], int(found[2])

    def _print_ends(self, at: list[str], jobs: dict[str, str]) -> None:
        """What became of all jobs, by `ray job list`."""
        listed = self.run("ray", "job", "list", *at, show=False)
        for name, status in jobs.items():
            details = listed.partition(f"submission_id='{name}'")[2]
            found = re.search(r"JobStatus\.(\w+)|status='(\w+)'", details)
            assert found is not None, listed
            print(f"  {name}: {found[1] or found[2]}")
            assert status in found.groups()

    def _print_upload(self, known: set[Path], most: int) -> set[Path]:
        """What a job has brought to the head, as it is unpacked there.

        Args:
            known: folders that other jobs have brought.
            most: bytes that it may have.

        Returns:
            The folders of all jobs so far.
        """
        found = (self.folder / "tmp-head").glob("**/runtime_resources/working_dir_files/*/")
        folders = {path.resolve() for path in found}  # one of the session, and a link to it
        (code,) = folders - known
        # What Python has compiled there since was not uploaded.
        files = [path for path in code.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        size = sum(path.stat().st_size for path in files)
        inside = sorted(path.name for path in code.iterdir())
        print(f"\non the head: {len(files)} files, {size / 1e6:.2f} MB: {', '.join(inside)}")
        assert size < most
        assert "kdfm_ray" in inside
        assert not {".git", ".venv", "runs", "store", "tests", "docs"} & set(inside)
        return folders

    def processes(self) -> list[psutil.Process]:
        """What lives of this demo: whoever has its folder in command or environment, and theirs.

        The environment of Ray's workers cannot be read once they have given themselves a title;
        they are children of those that can.
        """
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = [*process.cmdline(), *process.environ().values()]
                if process.pid != os.getpid() and any(str(self.folder) in each for each in words):
                    for each in [process, *process.children(recursive=True)]:
                        found[each.pid] = each
        return list(found.values())

    def take_down(self) -> None:
        """End this demo's processes, and no other, by their ids."""
        mine = self.processes()
        names = sorted({name_of(process) for process in mine})
        print(f"\nending {len(mine)} processes by their ids: {', '.join(names)}")
        for process in mine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(mine, timeout=10)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=10)
        left = [*self.processes(), *(process for process in mine if process.is_running())]
        print(f"left: {[name_of(process) for process in left] or 'none'}")
        assert not left


def name_of(process: psutil.Process) -> str:
    """What it is, in a word."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        words = process.cmdline()
        script = next((word for word in words if word.endswith(".py")), None)
        return Path(script).name if script else process.name()
    return "gone"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, below those that are given out by the system and
    above those that Ray gives to its workers."""
    found: list[int] = []
    start = 20_000 + os.getpid() % 10_000
    for port in range(start, 32_000):
        with contextlib.closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when it takes connections; fail when the process that should listen has ended."""

    def listens() -> bool:
        assert process.poll() is None, f"{process.args!r} has ended with {process.returncode}"
        with contextlib.closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, f"port {port}", seconds=60)


def wait_for(ready, what: str, seconds: float = 240) -> None:
    """Return when ``ready()`` is true."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
