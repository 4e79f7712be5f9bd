//! Where packages come from: the mirror that was asked for, or the machine's own.
//!
//! The machine's apt is asked, so proxies, snapshots and local mirrors are what the machine
//! uses, and no mirror's name is written anywhere in this program.

use super::Error;
use super::names::{Mirror, Suite};
use crate::job::{Job, Tool};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A release's archive, its updates and its security updates.
const POCKETS: &[&str] = &["", "-updates", "-security"];

/// One line for each archive: what mmdebstrap takes for a `sources.list`.
pub(super) async fn list(
    job: &Job,
    suite: &Suite,
    mirror: Option<&Mirror>,
) -> Result<String, Error> {
    if let Some(mirror) = mirror {
        return Ok(format!("deb {mirror} {suite} main\n"));
    }
    let query = Tool::new("apt-get", "apt").args(["indextargets", "Created-By: Packages"]);
    let query = query.args(["--format", "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"]);
    let lines = choose(&job.ask(query).await?, suite);
    if lines.is_empty() {
        return Err(Error::NoMirror { suite: suite.to_string() });
    }
    Ok(lines)
}

/// Proxies, retries and date checks of the machine's apt, for the one that fills the image.
pub(super) async fn options(job: &Job) -> Result<String, Error> {
    const TAKEN: &[&str] = &[
        "Acquire::http",
        "Acquire::https",
        "Acquire::ftp",
        "Acquire::Retries",
        "Acquire::ForceIPv",
        "Acquire::Check-Valid-Until",
        "Acquire::Check-Date",
    ];
    let dump = job.ask(Tool::new("apt-config", "apt").args(["dump", "--no-empty"])).await?;
    let mut options = String::from("Acquire::Languages \"none\";\n");
    for line in dump.lines().filter(|line| TAKEN.iter().any(|start| line.starts_with(start))) {
        options.push_str(line);
        options.push('\n');
    }
    Ok(options)
}

/// Debian's archives as the machine reaches them, for the suite that is wanted. A mirror holds
/// all releases, so one that the machine uses for its own does for another, too.
fn choose(targets: &str, suite: &Suite) -> String {
    let mut chosen = BTreeSet::new();
    for line in targets.lines() {
        let mut words = line.splitn(4, ' ');
        let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        // Without lists of packages apt does not know the origin; then the release has to match.
        let origin = words.next().unwrap_or_default().trim();
        let (base, pocket) = release.split_at(release.find('-').unwrap_or(release.len()));
        let known = origin == "Debian" || (origin.is_empty() && base == suite.as_str());
        if known && POCKETS.contains(&pocket) && uri.parse::<Mirror>().is_ok() {
            chosen.insert((pocket, uri));
        }
    }
    // Pockets alone are no release.
    if !chosen.iter().any(|(pocket, _)| pocket.is_empty()) {
        return String::new();
    }
    chosen.iter().fold(String::new(), |mut lines, (pocket, uri)| {
        writeln!(lines, "deb {uri} {suite}{pocket} main").expect("a String takes all text");
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_of_others_stay_out() {
        let targets = "http://m/debian/ bookworm main Debian\n\
            http://m/debian/ bookworm-updates main Debian\n\
            http://m/debian/ bookworm-backports main Debian Backports\n\
            http://m/security/ bookworm-security main Debian\n\
            http://m/debian/ bookworm contrib Debian\n\
            https://tools/ bookworm main Tools Inc\n\
            https://tools/ nodistro main \n\n garbage";
        let lines = choose(targets, &"bookworm".parse().unwrap());
        assert_eq!(
            lines,
            "deb http://m/debian/ bookworm main\n\
             deb http://m/security/ bookworm-security main\n\
             deb http://m/debian/ bookworm-updates main\n"
        );
        assert!(
            choose(targets, &"trixie".parse().unwrap())
                .contains("deb http://m/debian/ trixie main\n")
        );
    }

    #[test]
    fn without_lists_only_the_same_release_will_do() {
        let targets = "http://m/debian/ bookworm main \n";
        assert_eq!(
            choose(targets, &"bookworm".parse().unwrap()),
            "deb http://m/debian/ bookworm main\n"
        );
        assert_eq!(choose(targets, &"trixie".parse().unwrap()), "");
        assert_eq!(
            choose("http://m/ bookworm-security main Debian\n", &"bookworm".parse().unwrap()),
            ""
        );
    }
}
