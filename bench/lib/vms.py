"""A host of the lab as a node with microVMs: agent, twin-node, units that run stand-ins for VMMs; and
whoever follows what the server tells of them."""

import calendar
import http.client
import json
import os
import re
import threading
import time

import harness as h
import lab

METRICS = 8471
# A unit that is a VM by its name, and costs next to nothing: it sleeps.
IDLE = """[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=@/bin/sleep qemu-system-x86_64 infinity
"""
# One with a VMM's socket and a guest agent's.
ASKED = """[Service]
ExecStart=
Environment=PYTHONHOME=/usr
ExecStart=/usr/local/bin/qemu-system-x86_64 /usr/local/lib/vmm/qemu -qmp unix:/run/%i.qmp,server=on,wait=off \
-chardev socket,path=/run/%i.agent,server=on,wait=off,id=agent \
-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0
"""


class Node:
    """A server of ours, and a host whose agent tells it of VMs."""

    def __init__(self, work, options, interval=10):
        self.host = host = lab.Host(work)
        self.server, self.port = h.server(work, options)
        for part in ("qemu", "tap"):
            host.copy_in(os.path.join(h.ROOT, "lab", "vmm", part), "/usr/local/lib/vmm/")
        # A stand-in goes by the name of what it stands for.
        host.exec("cp", "/usr/bin/python3", "/usr/local/bin/qemu-system-x86_64")
        host.copy_in(h.twin_agent(options), "/usr/local/bin/twin-agent")
        host.copy_in(h.twin_node(options), "/usr/local/bin/twin-node")
        host.exec("mkdir", "-p", "/etc/safetytwin/checks")
        host.write("/etc/safetytwin/agent.yaml", f"server: http://127.0.0.1:{self.port}\nhost: {lab.NAME}\n"
                   f"interval: {interval}\nmetrics: 127.0.0.1:{METRICS}\n")
        host.write("/etc/safetytwin/node.yaml", f"server: http://127.0.0.1:{self.port}\nhost: {lab.NAME}\n")
        host.write("/etc/systemd/system/microvm@.service", IDLE)
        self.all = []

    def vms(self, names, asked=()):
        """Starts them; those that are asked have sockets."""
        for name in asked:
            self.host.exec("mkdir", "-p", f"/etc/systemd/system/microvm@{name}.service.d")
            self.host.write(f"/etc/systemd/system/microvm@{name}.service.d/asked.conf", ASKED)
        self.all += [*names, *asked]
        # Something wants them: one that is stopped is not forgotten.
        self.host.write("/etc/systemd/system/microvms.target",
                        "[Unit]\n" + "".join(f"Wants=microvm@{name}.service\n" for name in self.all))
        self.host.exec("systemctl", "daemon-reload")
        self.host.exec("systemctl", "start", "microvms.target")

    def watch(self):
        """Starts the agent, and waits until it has told of all of them."""
        self.host.service("twin-agent", ["/usr/local/bin/twin-agent"])
        h.wait_until(lambda: self.count("running") == len(self.all), "all VMs", seconds=180, pause=0.2)

    def count(self, state):
        count, after = 0, ""
        while True:
            page = h.get_json(self.port, f"/api/v1/vms?limit=1000&state={state}" + (f"&after={after}" if after else ""))
            count += len(page["vms"])
            after = page.get("next")
            if not after:
                return count

    def put(self, path, value):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("PUT", path, json.dumps(value), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            h.fail(f"PUT {path}: {answer.status} {text[:300]!r}")

    def cpu(self, service):
        """Seconds of a service so far, with all it started."""
        told = self.host.told("host", "exec", "--name", lab.NAME, "systemctl", "show", "--value", "-p", "CPUUsageNSec", service)
        return int(told) / 1e9

    def changed(self, unit):
        """When systemd says that a unit entered its state."""
        told = self.host.say(f"systemctl show --timestamp=us+utc --value -p StateChangeTimestamp {unit}")
        stamp = re.search(r"(\d+-\d+-\d+) (\d+:\d+:\d+)\.(\d+)", told)
        whole = calendar.timegm(time.strptime(f"{stamp[1]} {stamp[2]}", "%Y-%m-%d %H:%M:%S"))
        return whole + int(stamp[3]) / 10 ** len(stamp[3])


class Follower(threading.Thread):
    """What the server tells of VMs, which it does only once it is durable: the states, and when."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.told = {}
        self.news = threading.Condition()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/api/v1/vms/events")
        self.answer = connection.getresponse()
        self.start()

    def run(self):
        while text := self.answer.readline():
            now = time.time()
            if not text.startswith(b"data: {"):
                continue
            event = json.loads(text[5:])
            if event["kind"] == "state":
                with self.news:
                    self.told.setdefault((event["id"].split("@")[0], event["to"]), []).append(now)
                    self.news.notify_all()

    def after(self, name, states, since, seconds=20):
        """When one of the states was told, after a moment; nothing if it was not."""
        def first():
            return min((at for state in states for at in self.told.get((name, state), []) if at >= since), default=None)
        with self.news:
            self.news.wait_for(first, seconds)
            return first()
