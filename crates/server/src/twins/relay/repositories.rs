//! Which files are of the repositories that this machine's apt has packages from.

use crate::runs::Failure;
use axum::http::Uri;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::job::{Job, Progress, Tool};

/// For apt to say which there are.
const ASKING: Duration = Duration::from_secs(60);
/// Bytes of a path.
const PATH_MAX: usize = 1024;

/// Addresses that files are below, each with a slash at its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repositories(BTreeSet<String>);

impl Repositories {
    /// Those of these that are repositories of http or https.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = String>) -> Self {
        let address = |text: String| {
            let text = format!("{}/", text.trim().trim_end_matches('/'));
            let uri: Uri = text.parse().ok()?;
            let is_plain = matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
                && is_plain(uri.path());
            is_plain.then_some(text)
        };
        Self(addresses.into_iter().filter_map(address).collect())
    }

    /// What apt of this machine is set up with; its passwords stay with it.
    ///
    /// # Errors
    /// When there is no apt here, or it names none.
    pub async fn of_this_machine() -> Result<Self, Failure> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let lines = Arc::clone(&lines);
            move |said: Progress| {
                if let Progress::Line(line) = said {
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        };
        let job = Job::new(Arc::new(sink), CancellationToken::new(), Instant::now() + ASKING);
        let tool = Tool::new("apt-get", "apt").args(["indextargets", "--format", "$(REPO_URI)"]);
        job.run(tool).await?;
        let lines = std::mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner));
        let repositories = Self::new(lines);
        if repositories.0.is_empty() {
            let what = "apt of the server's machine names no repository of http or https, so no \
                        packages come to isolated twins";
            return Err(Failure::new(what));
        }
        Ok(repositories)
    }

    /// Where a file is fetched from; nothing for one of no repository. A guest asks in http, also
    /// for what is had by https.
    pub(super) fn source(&self, uri: &Uri) -> Option<String> {
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
        let path = uri.path();
        if uri.scheme_str() != Some("http") || uri.query().is_some() || !is_plain(path) {
            return None;
        }
        // apt writes `./` for a repository without distributions.
        let parts: Vec<&str> = path.split('/').filter(|part| *part != ".").collect();
        let at = format!("{}{}", authority.as_str().to_ascii_lowercase(), parts.join("/"));
        ["http", "https"].into_iter().find_map(|scheme| {
            let whole = format!("{scheme}://{at}");
            let is_below = |address: &String| whole.starts_with(address.as_str());
            self.0.iter().any(is_below).then_some(whole)
        })
    }
}

/// Whether a path leads nowhere but below itself, whoever reads it.
fn is_plain(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    path.len() <= PATH_MAX
        && path.starts_with('/')
        && path.bytes().all(|b| b.is_ascii_graphic() && !b"\\\"'`<>{}|^;#".contains(&b))
        && !["%2e", "%2f", "%5c", "%00"].iter().any(|escape| lower.contains(escape))
        && !path.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repositories() -> Repositories {
        Repositories::new(
            [
                "http://deb.example/debian/",
                "https://tools.example:8443/apt",
                "file:/srv/repository",
                "http://user:password@private.example/debian",
                "http://deb.example/x/../../",
            ]
            .map(str::to_owned),
        )
    }

    fn check(uri: &str, expected: Option<&str>) {
        let source = uri.parse().ok().and_then(|uri| repositories().source(&uri));
        assert_eq!(source.as_deref(), expected, "{uri}");
    }

    #[test]
    fn files_of_repositories_alone() {
        let file = "http://deb.example/debian/pool/main/n/nginx/nginx_1.22%2bdfsg~1_all.deb";
        check(file, Some(file));
        check(
            "http://DEB.example/debian/dists/x/InRelease",
            Some("http://deb.example/debian/dists/x/InRelease"),
        );
        check("http://tools.example:8443/apt/a", Some("https://tools.example:8443/apt/a"));
        check("http://deb.example/debian/./a/./b", Some("http://deb.example/debian/a/b"));
        for other in [
            "http://deb.example/./secret",
            "http://deb.example/debian./a",
            "http://deb.example/debian-security/x",
            "http://deb.example/debian/../secret",
            "http://deb.example/debian/%2E%2e/secret",
            "http://deb.example/debian/a%2fb",
            "http://deb.example/debian/a?b=c",
            "http://deb.example:81/debian/a",
            "http://deb.example@evil.example/debian/a",
            "http://evil.example/http://deb.example/debian/a",
            "http://169.254.169.254/latest",
            "http://127.0.0.1:8470/api/v1/hosts",
            "http://private.example/debian/a",
            "https://tools.example:8443/apt/a",
            "/debian/a",
            "deb.example:443",
        ] {
            check(other, None);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_is_below_a_repository(text in "http://(deb\\.example)?[a-z.:/@%2e?#\\\\-]{0,30}") {
            if let Some(source) = text.parse().ok().and_then(|uri| repositories().source(&uri)) {
                prop_assert!(source.starts_with("http://deb.example/debian/") && !source.contains(".."));
            }
        }
    }
}
