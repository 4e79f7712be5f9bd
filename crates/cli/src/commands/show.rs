//! `twin show`: a host at a glance.

use super::twin;
use crate::arguments::ShowArguments;
use crate::describe::standing;
use crate::entry::aligned;
use crate::failure::Failure;
use crate::session::Session;
use crate::target::single;
use crate::values::some;
use crate::view::{Paint, View, signed_bytes};
use api::answer::{Host, State};
use api::twin::Twin;
use model::entity::{
    Collector, Container, Cpu, Disk, Entity, Filesystem, Gpu, Interface, Memory, Package, Platform,
    Socket, Unit, Workload,
};
use model::{HostId, Kind};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Names in a row.
const MAX_NAMES: usize = 8;

/// Rows of single containers, sockets and the like.
const MAX_ROWS: usize = 12;

#[derive(Debug, Serialize)]
struct Overview {
    /// As it is now.
    host: Host,
    /// At the moment asked for.
    state: State,
    /// As it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    twin: Option<Twin>,
}

pub(crate) async fn run(arguments: &ShowArguments, session: &mut Session) -> Result<(), Failure> {
    let target = match single(&mut session.remote, "twin show", arguments.target.as_ref()).await {
        // A clone has no host.
        Err(missing @ Failure::NotThere(_)) => return clone(arguments, missing, session).await,
        target => target?,
    };
    let gone =
        || Failure::NotThere(format!("there is no host {:?} any more", target.host.as_str()));
    let host = session.remote.host(&target.host).await?.ok_or_else(gone)?;
    let state = session.remote.state(&target.host, target.moment.as_deref(), None).await?;
    let twin = session.remote.get::<Twin>(&twin::of(&target.host)).await.ok();
    session.answer(&Overview { host, state, twin }, render)
}

async fn clone(
    arguments: &ShowArguments,
    missing: Failure,
    session: &mut Session,
) -> Result<(), Failure> {
    let Some(Ok(name)) = arguments.target.as_deref().map(HostId::new) else { return Err(missing) };
    match session.remote.get::<Twin>(&twin::of(&name)).await {
        Ok(twin) => session.answer(&twin, twin::glance),
        Err(_) => Err(missing),
    }
}

fn render(overview: &Overview, view: &View) -> String {
    let Overview { host, state, twin } = overview;
    let mut page = Page { state, view, rows: Vec::new() };
    page.system();
    page.hardware();
    page.network();
    let system = page.take();
    page.units();
    page.containers();
    page.packages();
    page.sockets();
    page.workloads();
    let running = page.take();
    page.faults(host);
    let blind = page.take_painted(Paint::Red);
    let twin = twin.as_ref().map(|twin| twin::glance(twin, view)).unwrap_or_default();
    let parts = [title(overview, view), system, running, twin, blind];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

fn title(overview: &Overview, view: &View) -> String {
    let Overview { host, state, .. } = overview;
    let mut line = format!(
        "{}{}  changed {} ({})",
        view.paint(Paint::Bold, state.host.as_str()),
        view.paint(Paint::Cyan, &state.version.to_string()),
        view.age(state.at),
        view.time(state.at)
    );
    if state.version < host.version {
        line.push_str(&format!("; the newest is {} ({})", host.version, view.age(host.changed_at)));
    }
    match host.seen_at {
        Some(seen) => line.push_str(&format!("; seen {}", view.age(seen))),
        None => line.push_str("; not seen since the server started"),
    }
    line.push('\n');
    if let Some(change) = host.last_change.as_deref().filter(|_| state.version == host.version) {
        line.push_str(&format!("last change: {}\n", view.paint(Paint::None, change)));
    }
    line
}

struct Page<'a> {
    state: &'a State,
    view: &'a View,
    rows: Vec<(&'static str, String)>,
}

impl Page<'_> {
    fn row(&mut self, label: &'static str, parts: impl IntoIterator<Item = Option<String>>) {
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        if !parts.is_empty() {
            self.rows.push((label, parts.join(", ")));
        }
    }

    fn take(&mut self) -> String {
        self.take_painted(Paint::None)
    }

    /// The rows so far, as lines; `paint` is for what they say.
    fn take_painted(&mut self, paint: Paint) -> String {
        let rows = std::mem::take(&mut self.rows);
        let lines = if paint == Paint::None {
            aligned(rows, self.view)
        } else {
            let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
            let line = |(label, text): (&str, String)| {
                self.view.paint(paint, &format!("{label:width$}  {text}"))
            };
            rows.into_iter().map(line).collect()
        };
        lines.into_iter().map(|line| line + "\n").collect()
    }

    fn all<T: Entity>(&self) -> Vec<T> {
        self.state.facts.entities::<T>().collect()
    }

    fn one<T: Entity>(&self, id: &str) -> Option<T> {
        self.state.facts.entity(id)
    }

    fn system(&mut self) {
        let Some(platform) = self.one::<Platform>("host") else { return };
        let name = platform.distribution_name.or(platform.distribution);
        let kernel = platform.kernel.map(|kernel| format!("kernel {kernel}"));
        let systemd = platform.systemd_version.map(|version| format!("systemd {version}"));
        self.row("system", [name, kernel, platform.architecture, systemd]);
        let virtual_on = platform.virtualization.filter(|kind| kind != "none");
        let machine = [platform.vendor, platform.product].into_iter().flatten();
        let machine: Vec<String> = machine.collect();
        let machine = (!machine.is_empty()).then(|| machine.join(" "));
        self.row("machine", [machine, virtual_on.map(|kind| format!("virtual ({kind})"))]);
        let view = self.view;
        let since =
            platform.booted_at.map(|at| format!("since {} ({})", view.time(at), view.age(at)));
        self.row("up", [since]);
    }

    fn hardware(&mut self) {
        let cpu = self.one::<Cpu>("cpu").map(|cpu| {
            let number = cpu.logical.map_or_else(|| "?".to_owned(), |number| number.to_string());
            format!("{number} × {}", cpu.model.as_deref().unwrap_or("processor"))
        });
        let ram = self.one::<Memory>("ram").and_then(|memory| memory.total_bytes);
        let ram = ram.map(|total| format!("{} memory", signed_bytes(total)));
        let swap: i64 = self
            .all::<Memory>()
            .iter()
            .filter(|memory| memory.id != "ram")
            .filter_map(|memory| memory.total_bytes)
            .fold(0, i64::saturating_add);
        let swap = (swap > 0).then(|| format!("{} swap", signed_bytes(swap)));
        self.row("hardware", [cpu, ram, swap]);
        let whole =
            |disk: &Disk| disk.parent.is_none() && disk.size_bytes.is_some_and(|size| size > 0);
        let disks: Vec<String> = self
            .all::<Disk>()
            .into_iter()
            .filter(whole)
            .map(|disk| {
                format!("{} {}", disk.name, disk.size_bytes.map(signed_bytes).unwrap_or_default())
            })
            .collect();
        self.names("disks", &disks);
        let real = |one: &Filesystem| one.device.starts_with('/') && one.size_bytes.is_some();
        let filesystems: Vec<String> = self
            .all::<Filesystem>()
            .into_iter()
            .filter(real)
            .map(|one| {
                let size = one.size_bytes.map(signed_bytes).unwrap_or_default();
                format!("{} {} {size}", one.mount_point, one.filesystem_type)
            })
            .collect();
        self.names("mounts", &filesystems);
        let gpus: Vec<String> =
            self.all::<Gpu>().into_iter().map(|gpu| gpu.model.unwrap_or(gpu.id)).collect();
        self.names("GPUs", &gpus);
    }

    fn network(&mut self) {
        let interfaces: Vec<String> = self
            .all::<Interface>()
            .into_iter()
            .filter(|one| one.name != "lo" && !one.addresses.is_empty())
            .map(|one| format!("{} {}", one.name, one.addresses.join(" ")))
            .collect();
        self.names("network", &interfaces);
    }

    fn names(&mut self, label: &'static str, names: &[String]) {
        let text = (!names.is_empty()).then(|| some(names, MAX_NAMES));
        self.row(label, [text]);
    }

    fn units(&mut self) {
        let units = self.all::<Unit>();
        if units.is_empty() {
            return;
        }
        let states = tally(units.iter().map(|unit| unit.active_state.as_str()));
        self.row("units", [Some(format!("{} ({states})", units.len()))]);
        for unit in units.iter().filter(|unit| unit.active_state == "failed").take(MAX_ROWS) {
            let view = self.view;
            let since =
                unit.since.map(|since| format!("since {} ({})", view.time(since), view.age(since)));
            let result = unit.result.clone().filter(|result| result != "success");
            self.row("  failed", [Some(unit.id.clone()), result, since]);
        }
    }

    fn containers(&mut self) {
        let containers = self.all::<Container>();
        if containers.is_empty() {
            return;
        }
        let states = tally(containers.iter().map(|one| one.state.as_str()));
        self.row("containers", [Some(format!("{} ({states})", containers.len()))]);
        let items: Vec<String> = self
            .state
            .facts
            .of_kind(Kind::CONTAINER)
            .take(MAX_ROWS)
            .map(|(subject, item)| {
                format!(
                    "{}: {}",
                    subject.id(),
                    standing(Kind::CONTAINER, &item.fields(), self.view).join(", ")
                )
            })
            .collect();
        for text in items {
            self.row("", [Some(text)]);
        }
    }

    fn packages(&mut self) {
        let packages = self.all::<Package>();
        if !packages.is_empty() {
            let managers: BTreeSet<String> =
                packages.iter().map(|one| one.manager.clone()).collect();
            let managers: Vec<String> = managers.into_iter().collect();
            self.row("packages", [Some(format!("{} ({})", packages.len(), managers.join(", ")))]);
        }
        let files = self.state.facts.of_kind(Kind::FILE).count();
        let files = (files > 0).then(|| format!("{files} tracked"));
        self.row("files", [files]);
    }

    /// Each port once, however many addresses it is open on, and by whom.
    fn sockets(&mut self) {
        let mut ports: BTreeMap<(i64, String, String), BTreeSet<String>> = BTreeMap::new();
        for socket in self.all::<Socket>() {
            let Some(port) = socket.port else { continue };
            let holder = socket.process.or(socket.unit).or(socket.container).unwrap_or_default();
            ports.entry((port, socket.protocol, holder)).or_default().insert(socket.address);
        }
        let shown: Vec<String> = ports
            .into_iter()
            .map(|((port, protocol, holder), addresses)| {
                let local = addresses
                    .iter()
                    .all(|one| one.starts_with("127.") || one == "::1" || one == "[::1]");
                let local = if local { " (local)" } else { "" };
                let holder = if holder.is_empty() { holder } else { format!(" {holder}") };
                format!("{port}/{protocol}{holder}{local}")
            })
            .collect();
        let text = (!shown.is_empty()).then(|| some(&shown, 2 * MAX_ROWS));
        self.row("listening", [text]);
    }

    fn workloads(&mut self) {
        for workload in self.all::<Workload>().into_iter().take(MAX_ROWS) {
            let owner = workload.unit.or(workload.container);
            let models = (!workload.model_files.is_empty()).then(|| some(&workload.model_files, 3));
            let listens = (!workload.listens.is_empty())
                .then(|| format!("listens on {}", some(&workload.listens, 3)));
            let name = if workload.runtime.is_empty() || workload.runtime == workload.name {
                workload.name
            } else {
                format!("{} ({})", workload.name, workload.runtime)
            };
            self.row(
                "model",
                [Some(name), owner.map(|owner| format!("of {owner}")), models, listens],
            );
        }
    }

    /// What can't be seen at present, and how old the picture of it is.
    fn faults(&mut self, host: &Host) {
        let mut told = BTreeSet::new();
        for collector in self.all::<Collector>() {
            let Some(fault) = collector.fault else { continue };
            let view = self.view;
            let since = collector.fault_since.map(|at| format!("as of {}", view.age(at)));
            told.insert(collector.name.clone());
            self.row("stale", [Some(format!("{}: {fault}", collector.name)), since]);
        }
        for (name, fault) in &host.faults {
            if !told.contains(name) {
                self.row("stale", [Some(format!("{name}: {fault}"))]);
            }
        }
        let limited: Vec<String> = self
            .all::<Collector>()
            .into_iter()
            .filter(|one| !one.limits.is_empty())
            .map(|one| format!("{}: {}", one.name, some(&one.limits, 2)))
            .collect();
        for text in limited.into_iter().take(MAX_ROWS) {
            self.row("not seen", [Some(text)]);
        }
    }
}

/// `98 active, 3 failed`, the most first.
fn tally<'t>(names: impl Iterator<Item = &'t str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(if name.is_empty() { "unknown" } else { name }).or_default() += 1;
    }
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, number)| std::cmp::Reverse(*number));
    let parts: Vec<String> =
        counts.iter().map(|(name, number)| format!("{number} {name}")).collect();
    some(&parts, MAX_NAMES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::list::tests::host;
    use crate::commands::state::tests::state;
    use expect_test::{Expect, expect};

    fn check(facts: &str, expected: &Expect) {
        let overview = Overview { host: host("web01"), state: state(facts), twin: None };
        expected.assert_eq(&render(&overview, &View::of_tests()));
    }

    #[test]
    fn a_host() {
        check(
            r#"{
            "platform:host": {"hostname":"web01","distribution_name":"Debian GNU/Linux 12 (bookworm)","kernel":"6.1.0-18-amd64","architecture":"x86_64","systemd_version":"252","virtualization":"kvm","vendor":"QEMU","booted_at":"2026-11-01T06:00:00Z"},
            "cpu:cpu": {"model":"Intel Xeon","logical":4},
            "memory:ram": {"total_bytes":8370000000}, "memory:/dev/vda2": {"total_bytes":2147483648},
            "disk:vda": {"size_bytes":42949672960}, "disk:vda1": {"size_bytes":2949672960,"parent":"vda"},
            "filesystem:/": {"device":"/dev/vda1","filesystem_type":"ext4","size_bytes":40000000000},
            "interface:lo": {"addresses":["127.0.0.1/8"]}, "interface:eth0": {"addresses":["10.0.0.5/24","fe80::1/64"]},
            "unit:a.service": {"active_state":"active"}, "unit:b.service": {"active_state":"active"},
            "unit:c.timer": {"active_state":"inactive"},
            "unit:nginx.service": {"active_state":"failed","result":"exit-code","since":"2026-11-20T09:00:00Z"},
            "container:db": {"state":"running","image":"mysql:8","ports":["0.0.0.0:3306->3306/tcp"]},
            "container:old": {"state":"exited","exit_code":137,"image":"x:1"},
            "package:nginx": {"version":"1","manager":"dpkg"}, "package:bash": {"version":"1","manager":"dpkg"},
            "file:/etc/hosts": {"role":"chosen"},
            "socket:tcp 0.0.0.0:22": {"protocol":"tcp","address":"0.0.0.0","port":22,"process":"sshd"},
            "socket:tcp [::]:22": {"protocol":"tcp","address":"::","port":22,"process":"sshd"},
            "socket:tcp 0.0.0.0:2024": {"protocol":"tcp","address":"0.0.0.0","port":2024},
            "socket:tcp 127.0.0.1:2025": {"protocol":"tcp","address":"127.0.0.1","port":2025},
            "socket:tcp 127.0.0.1:11434": {"protocol":"tcp","address":"127.0.0.1","port":11434,"process":"ollama"},
            "workload:ollama#1": {"name":"ollama","runtime":"ollama","unit":"ollama.service","model_files":["/models/llama3.gguf"],"listens":["tcp 127.0.0.1:11434"]},
            "collector:docker": {"fault":"connection refused","fault_since":"2026-11-20T09:10:00Z"},
            "collector:processes": {"limits":["open files of other users: needs root"]}
        }"#,
            &expect![[r#"
                web01@412  changed 15 min ago (2026-11-20T09:00:00Z); seen 4 s ago
                last change: unit:nginx.service active → failed

                system    Debian GNU/Linux 12 (bookworm), kernel 6.1.0-18-amd64, x86_64, systemd 252
                machine   QEMU, virtual (kvm)
                up        since 2026-11-01T06:00:00Z (19 days ago)
                hardware  4 × Intel Xeon, 7.7 GiB memory, 2.0 GiB swap
                disks     vda 40.0 GiB
                mounts    / ext4 37.2 GiB
                network   eth0 10.0.0.5/24 fe80::1/64

                units       4 (2 active, 1 failed, 1 inactive)
                  failed    nginx.service, exit-code, since 2026-11-20T09:00:00Z (15 min ago)
                containers  2 (1 exited, 1 running)
                            db: running, mysql:8, 0.0.0.0:3306->3306/tcp
                            old: exited (137), x:1
                packages    2 (dpkg)
                files       1 tracked
                listening   22/tcp sshd, 2024/tcp, 2025/tcp (local), 11434/tcp ollama (local)
                model       ollama, of ollama.service, /models/llama3.gguf, listens on tcp 127.0.0.1:11434

                stale     docker: connection refused, as of 5 min ago
                not seen  processes: open files of other users: needs root
            "#]],
        );
    }

    #[test]
    fn a_host_that_says_little_and_lies() {
        check(
            r#"{"platform:host": {"distribution_name":"\u001b[2Jx\nfake  line"}, "unit:x.service": {"active_state":"failed","result":"\u202e"}}"#,
            &expect![[r#"
                web01@412  changed 15 min ago (2026-11-20T09:00:00Z); seen 4 s ago
                last change: unit:nginx.service active → failed

                system  \x1b[2Jx\nfake  line

                units     1 (1 failed)
                  failed  x.service, \u{202e}

                stale  docker: connection refused
            "#]],
        );
    }
}
