//! Which host, and which moment of it: `web01`, `web01@-5m`, `@412`.
//!
//! A word may be a host or the first subject; only the server knows which, so it is asked.
//! With one host on the server the name may be left out.

use crate::failure::Failure;
use crate::remote::Remote;
use api::answer::Host;
use model::{HostId, Moment};

/// Hosts named in an error.
const MAX_NAMED: usize = 10;

/// A host at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) host: HostId,
    /// As written, for the server to read; `None` is now.
    pub(crate) moment: Option<String>,
}

/// What was typed, to say how it is typed with a host: `twin log`, `@-5m nginx`.
#[derive(Debug, Clone, Copy)]
struct Typed<'w> {
    command: &'w str,
    /// Begins with the moment, if there is one.
    words: &'w [String],
}

/// What a word would mean if it were a target.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    host: Option<HostId>,
    moment: Option<String>,
}

/// A moment as the user wrote it, checked but not yet converted: the server's clock decides
/// what `-5m` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MomentText(pub(crate) String);

impl std::str::FromStr for MomentText {
    type Err = model::MomentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<Moment>().map(|_checked| Self(text.to_owned()))
    }
}

/// `None` for a word that can only be a subject, such as `getty@tty1.service`.
fn read(word: &str) -> Option<Written> {
    let (host, moment) = match word.split_once('@') {
        Some((host, moment)) => {
            let MomentText(moment) = moment.parse().ok()?;
            (host, Some(moment))
        }
        None => (word, None),
    };
    match host {
        "" => moment.map(|moment| Written { host: None, moment: Some(moment) }),
        host => Some(Written { host: Some(HostId::new(host).ok()?), moment }),
    }
}

/// The target the words of `command` begin with, or the server's only host, and the words that
/// follow.
pub(crate) async fn leading<'w>(
    remote: &mut Remote,
    command: &str,
    words: &'w [String],
) -> Result<(Target, &'w [String]), Failure> {
    let typed = Typed { command, words };
    let Some((first, rest)) = words.split_first() else {
        return Ok((Target { host: only(remote, typed).await?, moment: None }, words));
    };
    match read(first) {
        Some(Written { host: Some(host), moment }) => {
            if remote.host(&host).await?.is_some() {
                return Ok((Target { host, moment }, rest));
            }
            if moment.is_some() {
                return Err(no_host(remote, host.as_str()).await?);
            }
            // It may be a subject of the only host; among several it was to be a host.
            let hosts = remote.hosts(MAX_NAMED + 1).await?;
            if hosts.len() > 1 {
                return Err(neither(&hosts, first, typed));
            }
        }
        Some(Written { host: None, moment }) => {
            return Ok((Target { host: only(remote, typed).await?, moment }, rest));
        }
        // No name of a unit, container, package or file begins so.
        None if first.starts_with('@') => return Err(no_moment(first)),
        None => {
            // `getty@tty1.service` is a unit; `web01@-5x` is a slip of the pen.
            let host = first.split_once('@').and_then(|(host, _)| HostId::new(host).ok());
            if let Some(host) = host
                && remote.host(&host).await?.is_some()
            {
                return Err(no_moment(first.get(host.as_str().len()..).unwrap_or(first)));
            }
        }
    }
    Ok((Target { host: only(remote, typed).await?, moment: None }, words))
}

/// The target a single word of `command` is, or the server's only host.
pub(crate) async fn single(
    remote: &mut Remote,
    command: &str,
    word: Option<&String>,
) -> Result<Target, Failure> {
    let Some(word) = word else {
        return Ok(Target { host: only_host(remote, command).await?, moment: None });
    };
    match read(word) {
        Some(Written { host: Some(host), moment }) => match remote.host(&host).await? {
            Some(_) => Ok(Target { host, moment }),
            None => Err(no_host(remote, host.as_str()).await?),
        },
        Some(Written { host: None, moment }) => {
            let typed = Typed { command, words: std::slice::from_ref(word) };
            Ok(Target { host: only(remote, typed).await?, moment })
        }
        None => {
            let (host, moment) = word.split_once('@').unwrap_or((word, ""));
            let wrong = if host.is_empty() { Ok(()) } else { HostId::new(host).map(drop) };
            let wrong = wrong.map_err(|error| error.to_string());
            let message = wrong.err().or_else(|| Some(moment.parse::<Moment>().err()?.to_string()));
            Err(Failure::Usage(message.unwrap_or_else(|| format!("{word:?} is not HOST[@MOMENT]"))))
        }
    }
}

fn no_moment(word: &str) -> Failure {
    let wrong = word.trim_start_matches('@').parse::<Moment>().err();
    let message = wrong.map(|error| error.to_string());
    Failure::Usage(message.unwrap_or_else(|| format!("{word:?} is not HOST[@MOMENT]")))
}

/// The server's only host, where `command` names none.
pub(crate) async fn only_host(remote: &mut Remote, command: &str) -> Result<HostId, Failure> {
    only(remote, Typed { command, words: &[] }).await
}

async fn only(remote: &mut Remote, typed: Typed<'_>) -> Result<HostId, Failure> {
    let hosts = remote.hosts(MAX_NAMED + 1).await?;
    match hosts.as_slice() {
        [one] => Ok(one.host.clone()),
        [] => Err(Failure::NotThere(format!(
            "the server at {} knows no host yet; start an agent on one with: twin agent --server {}",
            remote.url(),
            remote.url()
        ))),
        many => Err(Failure::Usage(format!(
            "which host? name one of {} first, as in: {}",
            names(many),
            typed.with_one_of(many)
        ))),
    }
}

impl Typed<'_> {
    /// The same with a host, as far as a shell takes the words as they are.
    fn with_one_of(self, hosts: &[Host]) -> String {
        let host = hosts.first().map(|host| host.host.as_str()).unwrap_or_default();
        let mut line = format!("{} {host}", self.command);
        for (index, word) in self.words.iter().enumerate() {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "@:/._-+,=".contains(c);
            if index > 0 || !word.starts_with('@') {
                line.push(' ');
            }
            line.push_str(if word.chars().all(is_plain) { word } else { "…" });
        }
        line
    }
}

/// A first word that is no host, on a server with several.
fn neither(hosts: &[Host], word: &str, typed: Typed<'_>) -> Failure {
    Failure::NotThere(format!(
        "there is no host {word:?}; there is {}. For a subject name its host first, as in: {}",
        names(hosts),
        typed.with_one_of(hosts)
    ))
}

async fn no_host(remote: &mut Remote, name: &str) -> Result<Failure, Failure> {
    let hosts = remote.hosts(MAX_NAMED + 1).await?;
    let known = match hosts.as_slice() {
        [] => "the server knows none yet".to_owned(),
        some => format!("there is {}", names(some)),
    };
    Ok(Failure::NotThere(format!("there is no host {name:?}; {known}")))
}

fn names(hosts: &[Host]) -> String {
    let shown: Vec<&str> = hosts.iter().take(MAX_NAMED).map(|host| host.host.as_str()).collect();
    let more = if hosts.len() > MAX_NAMED { ", …" } else { "" };
    shown.join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::list::tests::host;
    use crate::fake_server::{FakeServer, Reply};
    use expect_test::{Expect, expect};

    #[test]
    fn words() {
        let word = |word: &str, expected: Option<(Option<&str>, Option<&str>)>| {
            let expected = expected.map(|(host, moment)| Written {
                host: host.map(|host| HostId::new(host).unwrap()),
                moment: moment.map(str::to_owned),
            });
            assert_eq!(read(word), expected, "{word}");
        };
        word("web01", Some((Some("web01"), None)));
        word("nginx.service", Some((Some("nginx.service"), None)));
        word("web01@-5m", Some((Some("web01"), Some("-5m"))));
        word("Web01@412", Some((Some("web01"), Some("412"))));
        word("web01@@412", Some((Some("web01"), Some("@412"))));
        word("web01@2026-11-20T09:00Z", Some((Some("web01"), Some("2026-11-20T09:00Z"))));
        word("@-5m", Some((None, Some("-5m"))));
        word("web01@now", Some((Some("web01"), Some("now"))));
        for subject in [
            "",
            "@",
            "web01@",
            "getty@tty1.service",
            "unit:nginx.service",
            "/etc/hosts",
            "user@1000.service",
            "a b",
            "@yesterday",
        ] {
            word(subject, None);
        }
    }

    /// Asks a server that knows these hosts; answers `HOST[@MOMENT] REST` or the failure.
    fn check(hosts: &'static [&str], words: &[&str], expected: &Expect) {
        let server = FakeServer::start(|path, _| match path.strip_prefix("/api/v1/hosts/") {
            Some(name) if hosts.contains(&name) => Reply::json(&host(name)),
            Some(_) => Reply::refused(404, "not_found", "there is no such host", ""),
            None => {
                let hosts = hosts.iter().map(|name| host(name)).collect();
                Reply::json(&api::answer::Hosts { hosts, next: None })
            }
        });
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let mut remote = Remote::new(&server.url(), None).unwrap();
            leading(&mut remote, "twin log", &words)
                .await
                .map(|(target, rest)| (target, rest.to_vec()))
        });
        let text = match answer {
            Ok((Target { host, moment }, rest)) => format!("{host} {moment:?} {rest:?}"),
            Err(failure) => format!("{} {failure}", failure.code()),
        };
        expected.assert_eq(&text.replace(&server.url(), "URL"));
    }

    #[test]
    fn the_first_word_is_a_host_if_the_server_says_so() {
        let one = &["web01"];
        check(one, &["nginx.service", "x"], &expect![[r#"web01 None ["nginx.service", "x"]"#]]);
        check(one, &["web01", "nginx.service"], &expect![[r#"web01 None ["nginx.service"]"#]]);
        check(one, &["web01@-5m"], &expect![[r#"web01 Some("-5m") []"#]]);
        check(one, &["@412", "nginx"], &expect![[r#"web01 Some("412") ["nginx"]"#]]);
        check(one, &["getty@tty1.service"], &expect![[r#"web01 None ["getty@tty1.service"]"#]]);
        check(one, &["web02@-5m"], &expect![[r#"4 there is no host "web02"; there is web01"#]]);
        check(one, &[], &expect!["web01 None []"]);
        check(
            &["a", "b"],
            &["nginx", "-x"],
            &expect![[
                r#"4 there is no host "nginx"; there is a, b. For a subject name its host first, as in: twin log a nginx -x"#
            ]],
        );
        check(
            &["a", "b"],
            &["nohost@-5m"],
            &expect![[r#"4 there is no host "nohost"; there is a, b"#]],
        );
        check(
            &["a", "b"],
            &[],
            &expect!["2 which host? name one of a, b first, as in: twin log a"],
        );
        check(
            &["a", "b"],
            &["@-5m", "nginx"],
            &expect!["2 which host? name one of a, b first, as in: twin log a@-5m nginx"],
        );
        check(
            &["a", "b"],
            &["unit:a b", "/etc/hosts"],
            &expect!["2 which host? name one of a, b first, as in: twin log a … /etc/hosts"],
        );
        check(
            &["a", "b"],
            &["getty@tty1.service"],
            &expect!["2 which host? name one of a, b first, as in: twin log a getty@tty1.service"],
        );
        check(&["a", "b"], &["b", "nginx"], &expect![[r#"b None ["nginx"]"#]]);
        check(
            &[],
            &["nginx"],
            &expect![
                "4 the server at URL knows no host yet; start an agent on one with: twin agent --server URL"
            ],
        );
    }
}
