//! Whether the server is there, what it knows, and how fresh that is.

use super::Check;
use crate::failure::{Failure, is_here};
use crate::remote::Remote;
use crate::view::{View, count, duration};
use api::answer::Host;
use hyper::header::{DATE, HeaderMap, SERVER};
use model::Time;
use std::time::Duration;

/// Hosts that are looked at.
const MAX_HOSTS: usize = 10_000;

/// Findings about single hosts.
const MAX_FINDINGS: usize = 20;

/// An agent sends at least every 10 s.
const SILENCE: Duration = Duration::from_secs(60);

/// How far this machine's clock may be from the server's.
const SKEW: Duration = Duration::from_secs(5);

const NAME: &str = "server";

pub(super) async fn checks(remote: &mut Remote, view: &View) -> Vec<Check> {
    // The stream's connection is given up with it, so that the rest gets a fresh one.
    let answer = match remote.another() {
        Ok(mut other) => other.open("/healthz").await,
        Err(failure) => Err(failure),
    };
    let url = remote.url().to_owned();
    let mut checks = match answer {
        Ok(answer) if answer.status().is_success() => reached(&url, answer.headers(), view.now),
        Ok(answer) => {
            let says = format!("{url} answers {} to /healthz", answer.status());
            vec![Check::warning(NAME, says, "curl -i URL/healthz, and the server's own log")]
        }
        Err(failure) => return vec![unreachable(&url, &failure)],
    };
    match remote.hosts(MAX_HOSTS).await {
        Ok(hosts) => {
            checks.extend(exposure(remote));
            checks.extend(agents(&url, &hosts, view));
        }
        Err(Failure::NotAllowed { message, advice }) => {
            checks.push(Check::error("token", message, advice));
        }
        Err(failure) => {
            let mend = "compare the versions of server and twin: twin --version";
            checks.push(Check::error("hosts", failure.to_string(), mend));
        }
    }
    checks
}

fn unreachable(url: &str, failure: &Failure) -> Check {
    match failure {
        Failure::NoServer { reason, .. } if is_here(url) => {
            Check::error(NAME, format!("none at {url} ({reason})"), "twin up")
        }
        Failure::NoServer { reason, .. } => {
            let mend = "start it there with twin server, or name another with --server URL";
            Check::error(NAME, format!("none at {url} ({reason})"), mend)
        }
        other => Check::error(NAME, other.to_string(), "--server http://HOST:PORT"),
    }
}

fn reached(url: &str, headers: &HeaderMap, now: Time) -> Vec<Check> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let ours = env!("CARGO_PKG_VERSION");
    let version = text(SERVER).and_then(|server| server.strip_prefix("safetytwin/"));
    let mut checks = vec![match version {
        Some(theirs) if theirs != ours => {
            let says = format!("answers at {url}, version {theirs}; this program is {ours}");
            Check::warning(NAME, says, "install the same version on both sides")
        }
        Some(theirs) => Check::ok(NAME, format!("answers at {url}, version {theirs}")),
        None => Check::ok(NAME, format!("answers at {url}, without telling its version")),
    }];
    let theirs = text(DATE).and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    if let Some(theirs) = theirs {
        let theirs = Time(theirs.timestamp().as_microsecond());
        let apart = now.since(theirs).max(theirs.since(now));
        if apart > SKEW {
            let says =
                format!("the clocks of server and this machine are {} apart", duration(apart));
            checks.push(Check::warning("clock", says, "sudo timedatectl set-ntp true"));
        }
    }
    checks
}

/// Who may read what goes over the network, and who may ask.
fn exposure(remote: &Remote) -> Option<Check> {
    if is_here(remote.url()) {
        return None;
    }
    Some(if remote.has_token() {
        Check::warning(
            "token",
            format!("goes to {} unencrypted; whoever is on the way can use it", remote.url()),
            "go through a tunnel, such as: ssh -L 8470:127.0.0.1:8470 SERVER",
        )
    } else {
        Check::warning(
            "token",
            format!("none is needed at {}: whoever reaches it can read it", remote.url()),
            "on the server: twin token create --role admin",
        )
    })
}

fn agents(url: &str, hosts: &[Host], view: &View) -> Vec<Check> {
    const NAME: &str = "agents";
    if hosts.is_empty() {
        let mend = format!("on each host: sudo twin agent --server {url}");
        return vec![Check::warning(NAME, "the server knows no host yet", mend)];
    }
    let mut findings: Vec<Check> = Vec::new();
    for host in hosts {
        let name = host.host.as_str();
        match host.seen_at {
            Some(seen) if view.now.since(seen) <= SILENCE => {}
            seen => {
                let when = seen.map_or_else(
                    || "for long".to_owned(),
                    |seen| format!("since {}", view.time(seen)),
                );
                let mend = format!(
                    "on {name}: systemctl status safetytwin-agent; journalctl -u safetytwin-agent"
                );
                findings.push(Check::warning(
                    NAME,
                    format!("{name} was not heard of {when}"),
                    mend,
                ));
            }
        }
        for (part, fault) in &host.faults {
            let says = format!("{name} can't see {part} at present: {fault}");
            findings.push(Check::warning(NAME, says, format!("on {name}: sudo twin doctor")));
        }
        for (part, limits) in &host.limits {
            let says = format!("{name} sees only a part of its {part}: {}", limits.join("; "));
            let mend = remedy(limits).map(|remedy| format!("on {name}: {remedy}"));
            findings.push(Check { mend, ..Check::warning(NAME, says, "") });
        }
    }
    if findings.is_empty() {
        return vec![Check::ok(
            NAME,
            format!(
                "{}, all heard of within a minute, none with faults",
                count(hosts.len(), "host")
            ),
        )];
    }
    let left_out = findings.len().saturating_sub(MAX_FINDINGS);
    findings.truncate(MAX_FINDINGS);
    if left_out > 0 {
        let says = format!("{} like these", count(left_out, "more finding"));
        findings.push(Check::warning(NAME, says, "twin list"));
    }
    findings
}

/// Words of a limit, as agents put them, and what lifts it. The first that fits counts. Whether an
/// agent is root already nobody tells, so what root may lack has its own name here.
const REMEDIES: [(&str, &str); 6] = [
    ("systemd does not run", "if it is a container, run the agent on the machine itself instead"),
    ("--pid=host", "run the agent on the machine itself, or its container with --pid=host"),
    (
        "no process connector",
        "if it is a container, run the agent on the machine itself, or it with --network=host",
    ),
    (
        "CAP_NET_ADMIN",
        "the agent needs CAP_NET_ADMIN, as its packaged unit has (a container: --cap-add NET_ADMIN)",
    ),
    (
        "CAP_SYS_PTRACE",
        "the agent needs root and CAP_SYS_PTRACE, as its packaged unit has (a container: \
         --cap-add SYS_PTRACE; processes of another user namespace stay hidden)",
    ),
    ("run as root", "run the agent as root, as its packaged unit does"),
];

/// What would let a host see what it can't, where something is known to.
fn remedy(limits: &[String]) -> Option<String> {
    let of = |limit: &String| {
        let fits = REMEDIES.iter().find(|(wanted, _)| limit.contains(wanted));
        fits.map(|&(_, remedy)| remedy)
    };
    let mut remedies: Vec<&str> = limits.iter().filter_map(of).collect();
    remedies.dedup();
    (!remedies.is_empty()).then(|| remedies.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::list::tests::host;
    use expect_test::{Expect, expect};

    fn check(checks: &[Check], expected: &Expect) {
        let shown: Vec<String> = checks
            .iter()
            .map(|check| {
                format!(
                    "{:?} {}: {} | {}\n",
                    check.level,
                    check.name,
                    check.says,
                    check.mend.clone().unwrap_or_default()
                )
            })
            .collect();
        expected.assert_eq(&shown.concat());
    }

    #[test]
    fn servers() {
        let headers = |server: &str, date: &str| {
            [(SERVER, server.parse().unwrap()), (DATE, date.parse().unwrap())].into_iter().collect()
        };
        let now = View::of_tests().now;
        let url = "http://127.0.0.1:8470";
        check(
            &reached(url, &headers("safetytwin/0.1.0", "Fri, 20 Nov 2026 09:15:01 GMT"), now),
            &expect![[r#"
                Ok server: answers at http://127.0.0.1:8470, version 0.1.0 | 
            "#]],
        );
        check(
            &reached(url, &headers("safetytwin/9.9.9", "Fri, 20 Nov 2026 09:45:01 GMT"), now),
            &expect![[r#"
                Warning server: answers at http://127.0.0.1:8470, version 9.9.9; this program is 0.1.0 | install the same version on both sides
                Warning clock: the clocks of server and this machine are 30 min apart | sudo timedatectl set-ntp true
            "#]],
        );
        check(
            &reached(url, &headers("nginx", "?"), now),
            &expect![[r#"
            Ok server: answers at http://127.0.0.1:8470, without telling its version | 
        "#]],
        );
        let down = |url: &str| {
            unreachable(
                url,
                &Failure::NoServer { server: url.into(), reason: "connection refused".into() },
            )
        };
        check(
            &[down(url), down("http://10.0.0.1:8470")],
            &expect![[r#"
            Error server: none at http://127.0.0.1:8470 (connection refused) | twin up
            Error server: none at http://10.0.0.1:8470 (connection refused) | start it there with twin server, or name another with --server URL
        "#]],
        );
    }

    #[test]
    fn hosts() {
        let view = View::of_tests();
        let silent = Host { faults: [].into(), seen_at: None, ..host("db") };
        let limits = |limits: &[&str]| limits.iter().map(|&limit| limit.to_owned()).collect();
        let partial = Host {
            limits: [
                (
                    "processes".to_owned(),
                    limits(&[
                        "processes of other users are hidden by hidepid; run as root or with the gid of /proc",
                        "executables and open files of other users' processes; run as root or with CAP_SYS_PTRACE",
                        "spawn and exit only every 50ms, exec only every 10s: process events need root or CAP_NET_ADMIN on this kernel",
                    ]),
                ),
                ("sockets".to_owned(), limits(&["sockets beyond the first 20000"])),
                ("units".to_owned(), limits(&["systemd does not run here"])),
            ]
            .into(),
            faults: [].into(),
            ..host("low")
        };
        let contained = |connector: &str| Host {
            limits: [("processes".to_owned(), limits(&[connector]))].into(),
            faults: [].into(),
            ..host("box")
        };
        let kernel = contained(
            "spawn and exit only every 50ms, exec only every 10s: the kernel has no process connector here (CONFIG_PROC_EVENTS, and the first network namespace)",
        );
        let namespace = contained(
            "spawn and exit only every 50ms, exec only every 10s: process events reach only the machine's first pid and user namespaces, and this is another; run outside of containers, or with --pid=host",
        );
        let well = Host { faults: [].into(), ..host("ok") };
        check(
            &agents(
                "http://x",
                &[host("web01"), silent, partial, kernel, namespace, well.clone()],
                &view,
            ),
            &expect![[r#"
                Warning agents: web01 can't see docker at present: connection refused | on web01: sudo twin doctor
                Warning agents: db was not heard of for long | on db: systemctl status safetytwin-agent; journalctl -u safetytwin-agent
                Warning agents: low sees only a part of its processes: processes of other users are hidden by hidepid; run as root or with the gid of /proc; executables and open files of other users' processes; run as root or with CAP_SYS_PTRACE; spawn and exit only every 50ms, exec only every 10s: process events need root or CAP_NET_ADMIN on this kernel | on low: run the agent as root, as its packaged unit does; the agent needs root and CAP_SYS_PTRACE, as its packaged unit has (a container: --cap-add SYS_PTRACE; processes of another user namespace stay hidden); the agent needs CAP_NET_ADMIN, as its packaged unit has (a container: --cap-add NET_ADMIN)
                Warning agents: low sees only a part of its sockets: sockets beyond the first 20000 | 
                Warning agents: low sees only a part of its units: systemd does not run here | on low: if it is a container, run the agent on the machine itself instead
                Warning agents: box sees only a part of its processes: spawn and exit only every 50ms, exec only every 10s: the kernel has no process connector here (CONFIG_PROC_EVENTS, and the first network namespace) | on box: if it is a container, run the agent on the machine itself, or it with --network=host
                Warning agents: box sees only a part of its processes: spawn and exit only every 50ms, exec only every 10s: process events reach only the machine's first pid and user namespaces, and this is another; run outside of containers, or with --pid=host | on box: run the agent on the machine itself, or its container with --pid=host
            "#]],
        );
        check(
            &agents("http://x", &[well], &view),
            &expect![[r#"
            Ok agents: 1 host, all heard of within a minute, none with faults | 
        "#]],
        );
        check(
            &agents("http://x", &[], &view),
            &expect![[r#"
            Warning agents: the server knows no host yet | on each host: sudo twin agent --server http://x
        "#]],
        );
    }
}
