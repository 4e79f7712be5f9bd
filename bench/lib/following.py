"""A host of the lab with an agent, its twin that follows it, and for the peers a clone of that
twin: the same guest from the same moment, with the same processors and memory."""

import contextlib
import json
import os
import shutil
import subprocess
import time

import harness as h
import lab
import twins as t

MEMORY_MIB = 768
PEER = "peer"
UNITS = 8


def image():
    """The directory of an image with all packages of the lab's host."""
    command = [os.path.join(h.ROOT, "lab", "guest-image"), "--as-host"]
    return h.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


class Followed:
    """The host, the server, the twin; all of it in the host's network. What a measurement wants
    else of them it says by what it overrides."""

    # What is added to the server's configuration, to `twins` in it, and to the agent's.
    SERVER = TWINS = AGENT = ""

    def __init__(self, work, options, base=None):
        self.work = work
        base = base or image()
        self.bin = t.programs(work, options)
        agent = h.twin_agent(options)
        self.host = lab.Host(work)
        environment = self.prepare()
        images = work.directory_of("data/images")
        os.chmod(work.path("data"), 0o700)
        shutil.copytree(base, os.path.join(images, os.path.basename(base)), copy_function=t.link_or_copy)
        config = work.path("twin.yaml")
        with open(config, "w") as file:
            file.write(f"twins: {{memory_mb: {MEMORY_MIB}, processors: {t.PROCESSORS}{self.TWINS}}}\n{self.SERVER}")
        self.port = h.free_port()
        # In a session of its own: ^C ends us, and it is needed to end its guests.
        self.server = work.start([os.path.join(self.bin, "twin"), "server", "--config", config, "--data-dir", work.path("data"),
                                  "--listen", f"127.0.0.1:{self.port}", "--log-level", "warning"], start_new_session=True, env=environment)
        h.wait_until(lambda: h.answers(self.port, "/readyz"), "our server", process=self.server)
        work.callback(self.end_guests)
        for number in range(UNITS):
            self.host.write(f"/etc/systemd/system/bench-{number}.service",
                            "[Service]\nExecStart=/usr/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n")
        self.host.exec("systemctl", "daemon-reload")
        self.host.exec("systemctl", "enable", "--quiet", "--now", *(f"bench-{number}.service" for number in range(UNITS)))
        self.host.copy_in(agent, "/usr/local/bin/twin-agent")
        os.makedirs(self.host.root + "/etc/safetytwin", exist_ok=True)
        self.host.write("/etc/safetytwin/agent.yaml", f"server: http://127.0.0.1:{self.port}\n{self.AGENT}")
        self.host.exec("systemd-run", "--quiet", "--unit=safetytwin-agent", "--property=Type=notify", "/usr/local/bin/twin-agent")
        h.wait_until(lambda: self.status(f"/api/v1/hosts/{lab.NAME}") == 200, "the host's first version")
        h.say("the twin boots, and becomes what its host is")
        self.twin("start", lab.NAME)
        h.wait_until(self.is_current, "the twin to be as its host", seconds=900, pause=0.5)

    def prepare(self):
        """What else there is to be before the server; gives its environment."""
        return dict(os.environ)

    def end_guests(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            for name in (PEER, lab.NAME):
                subprocess.run(self.command("delete", name), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
        # A server that is gone, or hangs, ends none.
        for _, _, pid in t.processes(self.work.path("data")):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def command(self, *words):
        return [os.path.join(self.bin, "twin"), "--server", f"http://127.0.0.1:{self.port}", *words]

    def twin(self, *words):
        """Runs `twin` to its end; how long that took."""
        return t.timed(self.command(*words), self.work.path("last"), limit=900)

    def status(self, path):
        return h.get(self.port, path)[0]

    def following(self):
        return h.get_json(self.port, f"/api/v1/twins/{lab.NAME}")["following"]

    def is_current(self):
        return self.following()["state"] == "current"

    def version(self):
        return h.get_json(self.port, f"/api/v1/hosts/{lab.NAME}")["version"]

    def after(self, version, is_so):
        """Waits until the server has a change of the host, and nothing more comes."""
        h.wait_until(lambda: self.version() > version and is_so(), "the host's change")
        seen = 0
        while seen != self.version():
            seen = self.version()
            time.sleep(1.5)

    def steps(self):
        """What leads the twin to its host now."""
        return h.get_json(self.port, f"/api/v1/twins/{lab.NAME}/plan")["steps"]

    def clone(self):
        """A clone of the twin, and how SSH gets in."""
        self.twin("clone", lab.NAME, "--name", PEER)
        return h.get_json(self.port, f"/api/v1/twins/{PEER}")["ssh"]


class Ansible:
    """The real ansible-playbook on a machine, as fast as it is set up by those who know it: no
    facts, pipelining, one SSH connection that stays; and with mitogen's strategy where that is
    wanted."""

    CORE = "ansible-core>=2.16,<2.17"

    @classmethod
    def python(cls):
        """The Python that has it. Fetched before there is a host, whose network reaches nothing."""
        python = h.python("mitogen")
        if not os.path.exists(os.path.join(os.path.dirname(python), "ansible-playbook")):
            h.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", cls.CORE])
        return python

    def __init__(self, work, python, ssh):
        self.work = work
        self.bin = os.path.dirname(python)
        where = subprocess.run([python, "-c", "import ansible_mitogen; print(ansible_mitogen.__path__[0])"], stdout=subprocess.PIPE, text=True, check=True)
        self.mitogen = os.path.join(where.stdout.strip(), "plugins", "strategy")
        self.inventory = work.path("inventory.json")
        host = {
            "ansible_host": ssh["address"], "ansible_port": ssh["port"], "ansible_user": ssh["user"], "ansible_become": True,
            "ansible_ssh_private_key_file": ssh["key"], "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={ssh['known_hosts']} -o HostKeyAlias={PEER}",
        }
        with open(self.inventory, "w") as file:
            json.dump({"all": {"hosts": {PEER: host}}}, file)

    def play(self, name, tasks, mitogen=False):
        """Runs tasks; how long that took."""
        path = self.work.path(f"{name}.json")
        with open(path, "w") as file:
            json.dump([{"hosts": PEER, "gather_facts": False, "tasks": tasks}], file)
        environment = dict(os.environ, ANSIBLE_PIPELINING="True", ANSIBLE_RETRY_FILES_ENABLED="False", LC_ALL="C.UTF-8",
                           ANSIBLE_SSH_ARGS="-o ControlMaster=auto -o ControlPersist=60s", ANSIBLE_HOME=self.work.directory_of("ansible"))
        if mitogen:
            environment.update(ANSIBLE_STRATEGY="mitogen_linear", ANSIBLE_STRATEGY_PLUGINS=self.mitogen)
        said = self.work.path("ansible.log")
        begin = time.monotonic()
        with open(said, "wb") as file:
            command = [os.path.join(self.bin, "ansible-playbook"), "-i", self.inventory, path]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, timeout=900)
        took = time.monotonic() - begin
        if done.returncode:
            h.fail(f"ansible-playbook: exit {done.returncode}\n{h.tail(said)}")
        return took


def unit(number, state):
    return {"ansible.builtin.systemd": {"name": f"bench-{number}.service", "state": state}}
