"""Machines for a measurement: a twin of ours as a user has it, and the same guest under libvirt
and under a QEMU of its own.

All three have the same image, kernel, seed, memory and processors, and are TCG or KVM alike: the
peers begin from the disk of our twin after its first boot, so that nobody boots for the first
time twice.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import time

import harness as h

NAME = "web01"
PROCESSORS = 2
KVM_FALLBACK = "tcg,thread=multi"


def programs(work, options):
    """The programs in one directory, as they are installed: one goes into the guests."""
    place = work.directory_of("bin")
    for program in (h.twin(options), h.twin_guest(options)):
        shutil.copy(program, place)
    strip = [h.debian("strip", "binutils"), os.path.join(place, "twin-guest")]
    subprocess.run(strip, check=False, env=h.with_libraries())
    return place


def image():
    """The directory of the lab's base image."""
    return h.run([os.path.join(h.ROOT, "lab", "guest-image")], stdout=subprocess.PIPE, text=True).stdout.strip()


def pss_mib(pid):
    """What a process holds of memory, its share of what others hold, too."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:")) / 1024


def timed(command, said, may_fail=False, limit=None):
    """Runs a program to its end, what it says into a file; gives how long that took, or None when it failed and may."""
    begin = time.monotonic()
    with open(said, "wb") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, timeout=limit)
    took = time.monotonic() - begin
    if done.returncode == 0:
        return took
    if not may_fail:
        h.fail(f"{' '.join(command)}: exit {done.returncode}\n{h.tail(said)}")
    return None


def processes(data):
    """All QEMUs of a server's data, whoever knows of them: machine, run, process. A QEMU works in
    the directory of its run."""
    place = os.path.join(data, "twins") + "/"
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{entry}/cwd")
            with open(f"/proc/{entry}/comm") as file:
                is_qemu = file.read().startswith("qemu-system")
            if is_qemu and cwd.startswith(place):
                name, _, run = cwd[len(place):].split("/", 2)
                found.append((name, run, int(entry)))
    return found


class Ours:
    """A server that knows a host, with an image if one is given; all it does goes by `twin` or the
    API."""

    def __init__(self, work, options, base, memory_mib):
        self.work = work
        self.data = work.directory_of("data")
        os.chmod(self.data, 0o700)
        images = work.directory_of("data/images")
        if base:
            shutil.copytree(base, os.path.join(images, os.path.basename(base)), copy_function=link_or_copy)
        self.bin = programs(work, options)
        self.config = work.path("twin.yaml")
        with open(self.config, "w") as file:
            file.write(f"max_snapshots: 1000\ntwins: {{memory_mb: {memory_mib}, processors: {PROCESSORS}}}\n")
        self.port = h.free_port()
        self.server = None
        work.callback(self.end)
        self.serve()
        body = json.dumps({"services": [], "processes": [], "hardware": {"hostname": NAME}})
        self.ask("POST", "/api/v1/update_state", body)

    def serve(self):
        command = [os.path.join(self.bin, "twin"), "server", "--config", self.config, "--data-dir", self.data,
                   "--listen", f"127.0.0.1:{self.port}", "--log-level", "warning"]
        self.server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=open(self.work.path("twin.log"), "ab"))
        self.server.log = self.work.path("twin.log")
        h.wait_until(lambda: h.answers(self.port, "/readyz"), "our server", process=self.server, pause=0.002)

    def kill_server(self):
        self.server.kill()
        self.server.wait()

    def end(self):
        if self.server:
            h.end(self.server)
        for pid in self.machines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def ask(self, method, path, body=None, accept="*/*"):
        """The status and the JSON that comes back."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            kind = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, {"Accept": accept, **kind})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def command(self, *words):
        return [os.path.join(self.bin, "twin"), "--server", f"http://127.0.0.1:{self.port}", *words]

    def twin(self, *words, may_fail=False):
        """Runs `twin` to its end; gives how long that took, or None when it failed and may."""
        return timed(self.command(*words), self.work.path("last"), may_fail)

    def said(self):
        """What the last `twin` said."""
        with open(self.work.path("last"), errors="replace") as file:
            return file.read()

    def snapshot(self, name):
        return self.ask("GET", f"/api/v1/twins/{NAME}/snapshots/{name}")[1]

    def processes(self):
        return processes(self.data)

    def machines(self):
        return [pid for _, _, pid in self.processes()]

    def guest(self, name=NAME):
        """The guest agent of a machine, while nobody else talks to it."""
        runs = os.path.join(self.data, "twins", name, "run")
        newest = max(os.listdir(runs), key=int)
        return Guest(os.path.join(runs, newest, "guest-agent"))

    def disk(self):
        """Where the disk of the stopped twin lies."""
        layers = os.path.join(self.data, "twins", NAME, "layers")
        return os.path.join(layers, max(os.listdir(layers), key=lambda name: int(name.split(".")[0])))

    def pid(self):
        """The QEMU of the twin."""
        return next(pid for name, _, pid in self.processes() if name == NAME)

    def seed(self):
        return os.path.join(self.data, "twins", NAME, "seed.iso")

    def accelerator(self):
        return self.ask("GET", f"/api/v1/twins/{NAME}")[1]["acceleration"]


def to_base64(text):
    return base64.b64encode(text.encode()).decode()


def from_base64(text):
    return base64.b64decode(text).decode()


def link_or_copy(source, destination):
    try:
        os.link(source, destination)
    except OSError:
        shutil.copy2(source, destination)


class Guest:
    """A conversation with QEMU's guest agent."""

    def __init__(self, path, limit=20):
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(limit)
        # The path of a socket is short; that of a directory need not be.
        place = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.stream.connect(f"/proc/self/fd/{place}/{os.path.basename(path)}")
        finally:
            os.close(place)
        self.rest = b""
        number = time.monotonic_ns() & 0x7FFFFFFF
        self.stream.sendall(b"\xff" + json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": number}}).encode() + b"\n")
        while self.answer().get("return") != number:
            pass

    def answer(self):
        while b"\n" not in self.rest:
            more = self.stream.recv(65536)
            if not more:
                raise ConnectionError("the guest's agent went away")
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        with contextlib.suppress(ValueError):
            return json.loads(line.rsplit(b"\xff", 1)[-1])
        return {}

    def call(self, command, **arguments):
        self.stream.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        answer = self.answer()
        if "return" not in answer:
            raise OSError(str(answer))
        return answer["return"]

    def write(self, path, text):
        file = self.call("guest-file-open", path=path, mode="w")
        self.call("guest-file-write", handle=file, **{"buf-b64": to_base64(text)})
        self.call("guest-file-close", handle=file)

    def read(self, path):
        """What is in a file; None where there is none."""
        try:
            file = self.call("guest-file-open", path=path, mode="r")
        except OSError:
            return None
        text = from_base64(self.call("guest-file-read", handle=file)["buf-b64"])
        self.call("guest-file-close", handle=file)
        return text

    def close(self):
        self.stream.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def answers(path):
    """Whether a guest's agent answers there."""
    try:
        Guest(path, 0.5).close()
        return True
    except (OSError, ConnectionError):
        return False


def await_rest(pids, seconds=120):
    """Waits until guests that have booted do next to nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = [h.cpu_seconds(pid) for pid in pids]
        time.sleep(3)
        if all(h.cpu_seconds(pid) - was < 0.3 for pid, was in zip(pids, before)):
            return
    h.note(f"the guests were not at rest after {seconds} s")


def await_guest(path, what, process=None, seconds=300, pause=0.01):
    h.wait_until(lambda: answers(path), what, seconds=seconds, process=process, pause=pause)


class Lone:
    """The same guest in a QEMU of its own, led by its monitor."""

    def __init__(self, work, place, disk, seed, base, memory_mib, accelerator, loads=None):
        self.place = place
        manifest = json.load(open(os.path.join(base, "manifest.json")))
        command = [
            "qemu-system-x86_64", "-machine", "pc", "-accel", "kvm" if accelerator == "kvm" else KVM_FALLBACK,
            "-cpu", "host" if accelerator == "kvm" else "max", "-smp", str(PROCESSORS), "-m", str(memory_mib),
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "file:serial.log",
            "-kernel", os.path.join(base, "vmlinuz"), "-initrd", os.path.join(base, "initrd.img"),
            "-append", command_line(manifest),
            "-drive", f"if=virtio,file={disk},format=qcow2,discard=unmap",
            "-drive", f"if=ide,media=cdrom,file={seed},format=raw,readonly=on",
            "-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-serial", "-chardev", "socket,path=guest-agent,server=on,wait=off,id=agent",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            "-device", "virtio-rng-pci", "-qmp", "unix:qmp,server=on,wait=off",
        ]
        if loads:
            command += ["-loadvm", loads]
        self.process = work.start(command, log=os.path.join(place, "qemu.log"), cwd=place)
        self.agent = os.path.join(place, "guest-agent")

    def monitor(self):
        path = os.path.join(self.place, "qmp")
        h.wait_until(lambda: os.path.exists(path), "QEMU", process=self.process)
        return Monitor(path)


def command_line(manifest):
    return manifest["boot"]["command_line"]


class Monitor:
    """A conversation with QEMU's monitor."""

    def __init__(self, path):
        self.stream = socket.socket(socket.AF_UNIX)
        place = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.stream.connect(f"/proc/self/fd/{place}/{os.path.basename(path)}")
        finally:
            os.close(place)
        self.lines = self.stream.makefile("rb")
        self.events = []
        self.lines.readline()
        self.call("qmp_capabilities")

    def call(self, command, **arguments):
        self.stream.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            said = json.loads(self.lines.readline())
            if "event" in said:
                self.events.append(said)
            elif "return" in said:
                return said["return"]
            else:
                h.fail(f"QEMU refuses {command}: {said}")

    def human(self, line):
        said = self.call("human-monitor-command", **{"command-line": line})
        if said.strip():
            h.fail(f"QEMU on {line}: {said}")

    def pause(self):
        """How long the guest stood still since this was last asked, by QEMU's own events."""
        self.call("query-status")
        stopped, total = None, 0.0
        for event in self.events:
            at = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
            if event["event"] == "STOP":
                stopped = at
            elif event["event"] == "RESUME" and stopped is not None:
                total, stopped = total + at - stopped, None
        self.events = []
        return total


class Virsh:
    """The same guest under libvirt: a daemon of the lab's own, that is gone at the end."""

    DOMAIN = """<domain type='{kind}'><name>{name}</name><memory unit='MiB'>{memory}</memory><vcpu>{processors}</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>{base}/vmlinuz</kernel><initrd>{base}/initrd.img</initrd>
<cmdline>{command_line}</cmdline></os><features><acpi/></features>{cpu}<devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{seed}'/><target dev='hda' bus='ide'/><readonly/></disk>
<interface type='user'><model type='virtio'/></interface><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<serial type='file'><source path='{place}/{name}.log'/></serial>
<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"""

    def __init__(self, work):
        if os.geteuid() != 0:
            h.missing("a libvirt daemon needs root")
        self.place = work.directory_of("libvirt")
        os.chmod(work.directory, 0o755)
        self.work = work
        # Its own, so that one of the lab may run beside it.
        self.environment = dict(os.environ, SAFETYTWIN_LAB_DIR=work.directory_of("lab"))
        work.callback(self.lab, "down", may_fail=True)
        self.lab("up")
        self.uri = self.lab("uri", stdout=subprocess.PIPE, text=True).stdout.strip()

    def lab(self, *words, may_fail=False, **more):
        command = [os.path.join(h.ROOT, "lab", "libvirt"), *words]
        if may_fail:
            return subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL)
        return h.run(command, env=self.environment, stdin=subprocess.DEVNULL, **more)

    def define(self, name, disk, seed, base, memory_mib, accelerator):
        manifest = json.load(open(os.path.join(base, "manifest.json")))
        path = os.path.join(self.place, name + ".xml")
        with open(path, "w") as file:
            file.write(self.DOMAIN.format(
                name=name, kind="kvm" if accelerator == "kvm" else "qemu", memory=memory_mib, processors=PROCESSORS,
                cpu="<cpu mode='host-passthrough'/>" if accelerator == "kvm" else "<cpu mode='maximum'/>",
                base=base, command_line=command_line(manifest), disk=disk, seed=seed, place=self.place))
        self("define", path)

    def command(self, *words):
        return ["virsh", "--quiet", "--connect", self.uri, *words]

    def __call__(self, *words, may_fail=False, limit=600):
        """Runs virsh to its end; gives how long that took, or None when it failed and may."""
        return timed(self.command(*words), self.work.path("virsh.out"), may_fail, limit)

    def agent(self, name, command, **arguments):
        """What the guest's agent answers; None when it does not."""
        asked = json.dumps({"execute": command, "arguments": arguments})
        done = subprocess.run(self.command("qemu-agent-command", "--timeout", "5", name, asked), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return json.loads(done.stdout).get("return") if done.returncode == 0 else None

    def await_guest(self, name, seconds=300):
        h.wait_until(lambda: self.agent(name, "guest-ping") is not None, f"{name} under libvirt", seconds=seconds, pause=0.005)

    def events(self, name):
        """Follows a machine's events; see `Events`."""
        return Events(self, name)


class Events:
    """How long a machine of libvirt's stood still, by QEMU's own events."""

    LINE = re.compile(r"event (STOP|RESUME) at (\d+\.\d+) ")

    def __init__(self, virsh, name):
        self.path = virsh.work.path(f"events-{name}")
        self.process = virsh.work.start(virsh.command("qemu-monitor-event", name, "--loop"), log=self.path,
                                        env=dict(os.environ, LC_ALL="C"))
        self.seen = 0

    def pause(self):
        """Since this was last asked."""
        deadline = time.monotonic() + 5
        while True:
            with open(self.path) as file:
                found = self.LINE.findall(file.read())
            new = found[self.seen:]
            if (new and new[-1][0] == "RESUME") or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        self.seen = len(found)
        stopped, total = None, 0.0
        for event, at in new:
            if event == "STOP":
                stopped = float(at)
            elif stopped is not None:
                total, stopped = total + float(at) - stopped, None
        return total


def overlay(path, disk, base):
    """The disk of our stopped twin as a file that stands on the image alone."""
    shutil.copy(disk, path)
    h.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", os.path.join(base, "disk.qcow2"), path])
    return path
