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
            let mend = format!(
                "on {name}, where rights are lacking: run the agent as root, as its packaged unit does"
            );
            findings.push(Check::warning(NAME, says, mend));
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
        let limits = vec!["12 processes of other users".to_owned()];
        let partial = Host {
            limits: [("processes".to_owned(), limits)].into(),
            faults: [].into(),
            ..host("low")
        };
        let well = Host { faults: [].into(), ..host("ok") };
        check(
            &agents("http://x", &[host("web01"), silent, partial, well.clone()], &view),
            &expect![[r#"
            Warning agents: web01 can't see docker at present: connection refused | on web01: sudo twin doctor
            Warning agents: db was not heard of for long | on db: systemctl status safetytwin-agent; journalctl -u safetytwin-agent
            Warning agents: low sees only a part of its processes: 12 processes of other users | on low, where rights are lacking: run the agent as root, as its packaged unit does
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
