"""A host of the lab of its own for a measurement: real systemd, its own network, and if wanted a
Docker engine. The rootfs is the one that lab/host has built, so that none is built twice."""

import ctypes
import os
import subprocess
import sys

import harness as h

NAME = "bench"
CLONE_NEWNET = 0x40000000


class Host:
    """Up as long as the work lasts. This process moves into its network: loopback is shared."""

    def __init__(self, work):
        if os.geteuid() != 0:
            h.missing("the lab's host needs root")
        self.place = os.path.join(h.HOME, "lab")
        os.makedirs(self.place, exist_ok=True)
        usual = os.environ.get("SAFETYTWIN_LAB_DIR") or os.path.join(os.path.dirname(h.HOME), "lab")
        built, ours = os.path.join(usual, "rootfs"), os.path.join(self.place, "rootfs")
        if os.path.isdir(built) and not os.path.lexists(ours):
            os.symlink(built, ours)
        self.work = work
        self.lab("host", "down", "--name", NAME)
        work.callback(self.lab, "host", "down", "--name", NAME)
        self.lab("host", "up", "--name", NAME)
        self.pid = int(self.told("host", "pid", "--name", NAME))
        self.root = f"/proc/{self.pid}/root"
        self.enter_network()
        self.shell = None

    def lab(self, part, *words, **more):
        environment = dict(os.environ, SAFETYTWIN_LAB_DIR=self.place)
        return h.run([os.path.join(h.ROOT, "lab", part), *words], env=environment, stdin=subprocess.DEVNULL, **more)

    def told(self, part, *words):
        return self.lab(part, *words, stdout=subprocess.PIPE, text=True).stdout.strip()

    def command(self, *words):
        return [os.path.join(h.ROOT, "lab", "host"), "exec", "--name", NAME, *words]

    def exec(self, *words, **more):
        return self.lab("host", "exec", "--name", NAME, *words, **more)

    def copy_in(self, source, destination):
        self.lab("host", "copy-in", "--name", NAME, source, destination)

    def write(self, path, text):
        with open(self.root + path, "w") as file:
            file.write(text)

    def enter_network(self):
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/proc/{self.pid}/ns/net") as namespace:
            if libc.setns(namespace.fileno(), CLONE_NEWNET):
                h.fail("could not enter the host's network: " + os.strerror(ctypes.get_errno()))

    def docker(self):
        """An engine; the path of its socket outside. The host has it under /run/lab."""
        self.work.callback(self.lab, "docker", "down")
        self.lab("docker", "up")
        return self.told("docker", "socket")

    def say(self, command):
        """Runs a line of shell inside, without a new process of our own for it; gives its output."""
        if self.shell is None:
            environment = dict(os.environ, SAFETYTWIN_LAB_DIR=self.place)
            self.shell = self.work.start(self.command("bash"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.shell.stdin.write(f"{command}\nprintf '\\0'\n".encode())
        self.shell.stdin.flush()
        answer = bytearray()
        while not answer.endswith(b"\0"):
            byte = os.read(self.shell.stdout.fileno(), 65536)
            if not byte:
                h.fail("the shell inside the host ended:\n" + h.tail(self.shell.log))
            answer += byte
        return answer[:-1].decode()

    def service(self, name, command, *properties):
        """A transient service; what it costs is counted by its control group."""
        more = [f"--property={one}" for one in properties]
        self.exec("systemd-run", "--quiet", f"--unit={name}", "--property=CPUAccounting=yes", *more, "--", *command)
        return int(self.told("host", "exec", "--name", NAME, "systemctl", "show", "--value", "--property=MainPID", name))

    def outer_pid(self, inner):
        """The number outside of a process with this number inside."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/status") as file:
                        numbers = next(line.split()[1:] for line in file if line.startswith("NSpid:"))
                except (OSError, StopIteration):
                    continue
                if len(numbers) > 1 and numbers[-1] == str(inner) and same_namespace(entry, self.pid):
                    return int(entry)
        h.fail(f"no process {inner} in the host")
        sys.exit(1)


def same_namespace(one, other):
    try:
        return os.readlink(f"/proc/{one}/ns/pid") == os.readlink(f"/proc/{other}/ns/pid")
    except OSError:
        return False
