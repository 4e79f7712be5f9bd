"""What the scripts of bench/ share: a place to work in, programs to measure, the closing lines.

Owns: installing what is missing below one directory of its own, starting and ending processes,
reading what they cost. Leaves to each script: the work, the peers, the goals.

- Peers from Debian are downloaded and unpacked there, not installed: no service is started, no
  file of the machine changes, and no root is needed for it.
- Ends only processes it started, by their process object, in the reverse order, whatever happens.
- All traffic is on loopback; all data of a run is below one temporary directory and goes with it.
"""

import argparse
import contextlib
import glob
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
BENCH = os.path.join(ROOT, "bench")
HOME = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "safetytwin", "bench")
TARGET = os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target")
PACKAGES = os.path.join(HOME, "packages")
MISSING = 69  # EX_UNAVAILABLE


def say(text):
    print(text, file=sys.stderr, flush=True)


def arguments(description, **more):
    """The command line that every script has, and what this one adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small version of the same, within a minute")
    parser.add_argument("--binaries", metavar="DIR", help="take twin, twin-agent, twin-guest, twin-node, and load if it is there, from that directory instead of building them")
    for name, options in more.items():
        parser.add_argument("--" + name, **options)
    return parser.parse_args()


def machine(options=None):
    """Says what the figures are of, and what disturbs them."""
    memory = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    load = os.getloadavg()[0]
    disturbed = " (busy: absolute times are worth little)" if load > 0.5 * os.cpu_count() else ""
    print(f"# {os.cpu_count()} cores ({model}), {memory >> 20} GiB, Linux {os.uname().release}, "
          f"load average {load:.2f} at the start{disturbed}", flush=True)


def line(row, what, ours, peer=None, ratio=None, goal=None, met=None, note=None):
    """One closing line; a ratio above 1 is in our favour."""
    words = [row, what, f"ours={ours}"]
    words.append(f"peer={peer[0]}:{peer[1]}" if peer else "peer=-")
    words.append(f"ratio={ratio:.3g}" if ratio is not None else "ratio=-")
    words.append(f"goal={goal}" if goal else "goal=-")
    words.append("-" if met is None else "met" if met else "missed")
    print(" ".join(words) + (f"  # {note}" if note else ""), flush=True)


def note(text):
    print(f"# {text}", flush=True)


def median(values):
    values = sorted(values)
    return values[len(values) // 2] if values else float("nan")


def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * percent / 100))] if values else float("nan")


# Processes

class Work(contextlib.ExitStack):
    """A directory and processes that are gone when the script is."""

    def __init__(self):
        super().__init__()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))
        os.makedirs(HOME, exist_ok=True)
        self.directory = tempfile.mkdtemp(prefix="run-", dir=HOME)
        self.callback(shutil.rmtree, self.directory, ignore_errors=True)

    def __exit__(self, *details):
        # To end all of it is not to be broken off by a second ^C.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return super().__exit__(*details)

    def path(self, *names):
        return os.path.join(self.directory, *names)

    def directory_of(self, name):
        os.makedirs(self.path(name), exist_ok=True)
        return self.path(name)

    def start(self, command, log=None, **options):
        """A process whose output goes to a file that is shown when it fails."""
        log = log or self.path(os.path.basename(command[0]) + ".log")
        options.setdefault("stdin", subprocess.DEVNULL)
        if "stdout" not in options:
            options["stdout"] = open(log, "ab")
        if "stderr" not in options:
            options["stderr"] = open(log, "ab")
        process = subprocess.Popen(command, **options)
        process.log = log
        self.callback(end, process)
        return process


def end(process, grace=10):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(condition, what, seconds=30, pause=0.01, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            fail(f"{what}: the process ended with {process.returncode}\n" + tail(process.log))
        if time.monotonic() > deadline:
            fail(f"{what}: not within {seconds} s\n" + (tail(process.log) if process is not None else ""))
        time.sleep(pause)


def tail(path, lines=15):
    with open(path, errors="replace") as file:
        return "".join(file.readlines()[-lines:])


def fail(text, status=1):
    say(text)
    sys.exit(status)


def missing(text):
    fail(f"can't run here: {text}", MISSING)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port, path="/"):
    """Whether something answers HTTP there, and does so without an error."""
    try:
        return get(port, path)[0] < 400
    except OSError:
        return False


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def get_json(port, path):
    status, body = get(port, path)
    if status != 200:
        fail(f"GET {path}: {status} {body[:300]!r}")
    return json.loads(body)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def run(command, **options):
    """Runs to its end, its output on standard error; fails with it."""
    options.setdefault("stdout", sys.stderr)
    result = subprocess.run(command, **options)
    if result.returncode:
        fail(f"{' '.join(command)}: exit {result.returncode}")
    return result


# What processes cost

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """User and system time of all threads so far, those that ended included."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


def disk_bytes(directory):
    total = 0
    for place, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


# Programs

def cargo(*words, cwd=ROOT):
    environment = dict(os.environ, CARGO_TARGET_DIR=TARGET, CARGO_TERM_PROGRESS_WHEN="never")
    run(["cargo", *words, "--quiet"], cwd=cwd, env=environment)


def twin(options):
    return built(options, "twin", "cli", "release")


def twin_agent(options):
    return built(options, "twin-agent", "agent", "agent", "--features", "small")


def twin_node(options):
    return built(options, "twin-node", "agent", "agent", "--features", "small")


def twin_guest(options):
    return built(options, "twin-guest", "agent", "agent", "--features", "small")


def built(options, program, package, profile, *more):
    if options.binaries:
        path = os.path.join(os.path.realpath(options.binaries), program)
        if not os.path.exists(path):
            missing(f"there is no {path}")
        return path
    cargo("build", "--locked", "--profile", profile, "-p", package, *more)
    return os.path.join(TARGET, profile, program)


def load(options):
    """Our own load generator. Its lock file follows the product's crates, so it is not held to it."""
    if options.binaries and os.path.exists(os.path.join(options.binaries, "load")):
        return os.path.join(os.path.realpath(options.binaries), "load")
    cargo("build", "--release", cwd=os.path.join(BENCH, "load"))
    return os.path.join(TARGET, "release", "load")


def server(work, options, data=None, port=None):
    """A server of ours on a data directory; it and its port."""
    port = port or free_port()
    command = [twin(options), "server", "--data-dir", data or work.path("data"), "--listen", f"127.0.0.1:{port}", "--log-level", "warning"]
    process = work.start(command)
    wait_until(lambda: answers(port, "/readyz"), "our server", process=process)
    return process, port


class Asked:
    """A process that answers each line it is given with a line of JSON."""

    def __init__(self, work, command):
        self.process = work.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None)
        self.first = self.read()

    def read(self):
        text = self.process.stdout.readline()
        if not text:
            fail(f"{self.process.args[0]} ended with {self.process.wait()}")
        return json.loads(text)

    def ask(self, text):
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()
        return self.read()


def answer_of(command):
    """The JSON that a command prints at its end."""
    result = subprocess.run(command, stdout=subprocess.PIPE)
    if result.returncode:
        fail(f"{' '.join(command)}: exit {result.returncode}")
    return json.loads(result.stdout.splitlines()[-1])


# Peers

def debian(program, *packages):
    """The path of a program: the machine's own, or one unpacked from Debian packages."""
    found = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin") or in_packages(program)
    if found:
        return found
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        missing(f"{program}, and no apt-get to take it from {' '.join(packages)}")
    say(f"downloading {' '.join(packages)}")
    os.makedirs(PACKAGES, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as place:
        download = ["apt-get", "-qq", "download", *packages]
        quiet = {"cwd": place, "stdout": sys.stderr, "stderr": subprocess.DEVNULL}
        if subprocess.run(download, **quiet).returncode:
            if os.geteuid() == 0:
                subprocess.run(["apt-get", "-qq", "update"], stdout=sys.stderr)
            if subprocess.run(download, cwd=place, stdout=sys.stderr).returncode:
                missing(f"the packages {' '.join(packages)} can't be downloaded")
        for package in glob.glob(os.path.join(place, "*.deb")):
            run(["dpkg-deb", "-x", package, PACKAGES])
    return in_packages(program) or missing(f"{program} is not in {' '.join(packages)}")


def in_packages(program):
    for place in ("usr/bin", "usr/sbin", "usr/lib/postgresql/*/bin"):
        for path in glob.glob(os.path.join(PACKAGES, place, program)):
            return path
    return None


def with_libraries():
    """An environment in which unpacked programs find unpacked libraries."""
    directories = glob.glob(os.path.join(PACKAGES, "usr/lib/*-linux-gnu*"))
    return dict(os.environ, LD_LIBRARY_PATH=":".join(directories))


def go(name):
    """A peer written in Go, from bench/peers."""
    program = os.path.join(HOME, "go", name)
    source = os.path.join(BENCH, "peers", name)
    newest = max(os.path.getmtime(path) for path in glob.glob(source + "/*"))
    if not os.path.exists(program) or os.path.getmtime(program) < newest:
        compiler = shutil.which("go", path=os.environ["PATH"] + ":/usr/local/go/bin")
        if not compiler:
            missing("go, to build " + name)
        say(f"building {name}")
        run([compiler, "build", "-o", program, "."], cwd=source)
    return program


def python(*packages):
    """A Python that has these packages."""
    place = os.path.join(HOME, "python")
    program = os.path.join(place, "bin", "python3")
    if not os.path.exists(program):
        run([sys.executable, "-m", "venv", place])
    probe = [program, "-c", "import " + ",".join(packages)]
    if subprocess.run(probe, stderr=subprocess.DEVNULL).returncode:
        run([program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
    return program


def unprivileged():
    """What to put before a command that refuses to run as root: it then sees itself as another
    user, in a user namespace, with root's own files still being its own."""
    return ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
