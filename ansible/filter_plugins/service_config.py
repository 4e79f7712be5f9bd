"""`service_config`: a service_config.yaml, checked, in one spelling, and as data.

Its texts come from a machine that somebody watches. Names that go into paths and units are of
plain characters or refused; all else is marked, so that Ansible sees no templates in it.
"""
import math
import re

import yaml
from ansible.errors import AnsibleFilterError
from ansible.utils.unsafe_proxy import wrap_var

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,127}")
CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
IMAGE = re.compile(r"(?!.*[.][.])[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,511}")
USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PORT = re.compile(r"(?:(?:(?P<address>[0-9.]+):)?(?P<outside>[0-9]+):)?(?P<inside>[0-9]+)(?:/(?P<kind>tcp|udp))?")
UNITS = (".service", ".socket", ".timer", ".path", ".target", ".mount")
RESTARTS = ("no", "always", "on-success", "on-failure", "on-abnormal", "on-abort", "on-watchdog")
STATES = {
    **dict.fromkeys(("active", "running", "started"), "started"),
    **dict.fromkeys(("inactive", "stopped", "dead", "exited", "failed"), "stopped"),
}


def service_config(text):
    """What the file says, or why it is none."""
    try:
        said = yaml.safe_load(str(text)) or {}
    except yaml.YAMLError as error:
        raise AnsibleFilterError(f"it is no YAML: {error}") from error
    said = mapping(said, "the file")
    services = [mapping(one, "a service") for one in sequence(said, "services")]
    processes = [mapping(one, "a process") for one in sequence(said, "processes")]
    system = mapping(said.get("system") or {}, "system")
    return wrap_var({
        "hostname": plain(system, "hostname", HOST, ""),
        "units": [unit(one) for one in services if kind(one) == "systemd"],
        "containers": [container(one) for one in services if kind(one) == "docker"],
        "processes": [process(one) for one in processes],
    })


def kind(service):
    if service.get("type") not in ("systemd", "docker"):
        raise AnsibleFilterError(f"services are of type systemd or docker, not {service.get('type')!r}")
    return service["type"]


def unit(service):
    name = plain(service, "name", NAME)
    made = service.get("process")
    restart = service.get("restart") or "on-failure"
    return {
        "name": name if name.endswith(UNITS) else f"{name}.service",
        "enabled": bool(service["enabled"]) if "enabled" in service else None,
        "state": state(service),
        "process": None if made is None else {
            "called": name.removesuffix(".service"),
            "description": name,
            "restart": restart if restart in RESTARTS else "on-failure",
            **launched(mapping(made, f"process of {name}"), "env"),
        },
    }


def process(said):
    """As a unit of its own, with limits."""
    name = re.sub(r"[^A-Za-z0-9-]", "_", str(said.get("name") or "process"))[:64]
    called = f"digital_twin_{name}_{number(said, 'pid', 0)}"
    return {
        "called": called,
        "description": f"Twin of the process {name}",
        "restart": "on-failure",
        "user": plain(said, "user", USER, ""),
        "memory_mb": max(1, number(said, "memory_limit_mb", 1024)),
        "cpu_percent": max(100, number(said, "cpu_percent", 100)),
        **launched(said, "environment"),
    }


def launched(said, variables):
    words = said.get("cmdline")
    # A list is taken word by word; a text only splits at spaces.
    words = words.split() if isinstance(words, str) else [str(word) for word in words or []]
    if not words or any("\0" in word for word in words):
        raise AnsibleFilterError(f"a process needs a cmdline, a list of words: {said.get('name')!r}")
    environment = pairs(said.get(variables) or [])
    return {
        "words": words,
        "directory": str(said.get("cwd") or ""),
        # What a shell can't name is left out.
        "environment": [pair for pair in environment if VARIABLE.fullmatch(pair[0])],
    }


def container(said):
    """What the engine is told, and what it is called."""
    ports = {}
    for port in sequence(said, "ports"):
        if isinstance(port, dict):
            port = f"{port.get('host_ip') or '0.0.0.0'}:{port.get('host_port')}:{port.get('container_port')}"
        found = PORT.fullmatch(str(port))
        if not found:
            raise AnsibleFilterError(f"a port is HOST:CONTAINER or one number, not {port!r}")
        inside = f"{found['inside']}/{found['kind'] or 'tcp'}"
        outside = {"HostIp": found["address"] or "0.0.0.0", "HostPort": found["outside"] or found["inside"]}
        ports.setdefault(inside, []).append(outside)
    mounts = [{
        "Type": "bind" if str(volume.get("source", "")).startswith("/") else "volume",
        "Source": str(volume.get("source", "")),
        "Target": str(volume.get("destination", "")),
        "ReadOnly": bool(volume.get("read_only")),
    } for volume in (mapping(one, "a volume") for one in sequence(said, "volumes"))]
    return {
        "name": plain(said, "name", CONTAINER),
        "image": plain(said, "image", IMAGE),
        "state": state(said) or "started",
        "form": {
            "Image": plain(said, "image", IMAGE),
            "Env": [f"{name}={value}" for name, value in pairs(said.get("environment") or [])],
            "ExposedPorts": {inside: {} for inside in ports},
            "HostConfig": {
                "PortBindings": ports,
                "Mounts": mounts,
                "RestartPolicy": {"Name": str(said.get("restart") or "no")},
            },
        },
    }


def state(said):
    wanted = str(said.get("state") or "").lower()
    if wanted and wanted not in STATES:
        raise AnsibleFilterError(f"a state is one of {', '.join(STATES)}, not {wanted!r}")
    return STATES.get(wanted, "")


def pairs(said):
    """`NAME=value` of a list, or a mapping."""
    if isinstance(said, dict):
        return [[str(name), str(value)] for name, value in said.items()]
    return [str(one).partition("=")[::2] for one in said if "=" in str(one)]


def plain(said, key, form, otherwise=None):
    """A name of plain characters."""
    if said.get(key) is None and otherwise is not None:
        return otherwise
    text = str(said.get(key))
    if not form.fullmatch(text):
        raise AnsibleFilterError(f"{key} is a name of plain characters, not {text!r}")
    return text


def number(said, key, otherwise):
    value = said.get(key)
    if value is None:
        return otherwise
    try:
        return math.ceil(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise AnsibleFilterError(f"{key} is a number, not {value!r}") from error


def mapping(said, what):
    if not isinstance(said, dict):
        raise AnsibleFilterError(f"{what} is to be a mapping")
    return said


def sequence(said, key):
    values = said.get(key) or []
    if not isinstance(values, list):
        raise AnsibleFilterError(f"{key} is to be a list")
    return values


class FilterModule:
    def filters(self):
        return {"service_config": service_config}
