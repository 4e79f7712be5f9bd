//! `twin completions` and `twin man`.

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::session::write;
use clap::CommandFactory;
use std::path::Path;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "twin", &mut out);
    write(&String::from_utf8_lossy(&out))
}

/// The page of `twin` itself to standard output, or all pages into a directory.
pub(crate) fn pages(dir: Option<&Path>) -> Result<(), Failure> {
    let Some(dir) = dir else {
        let mut out = Vec::new();
        clap_mangen::Man::new(Arguments::command()).render(&mut out).map_err(Failure::Output)?;
        return write(&String::from_utf8_lossy(&out));
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), dir))
        .and_then(|()| clap_mangen::generate_to(agent::options::Options::command(), dir))
        .and_then(|()| clap_mangen::generate_to(agent::guest::Options::command(), dir))
        .and_then(|()| clap_mangen::generate_to(agent::node::Options::command(), dir))
        .map_err(|source| Failure::Write { path: dir.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        pages(Some(dir.path())).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let page = std::fs::read_to_string(dir.path().join("twin.1")).unwrap();
        assert!(page.contains("Exit codes"), "{page}");
        for name in [
            "twin-log.1",
            "twin-token-create.1",
            "twin.1",
            "twin-agent.1",
            "twin-guest.1",
            "twin-node.1",
        ] {
            assert!(names.iter().any(|one| one == name), "{names:?}");
        }
    }
}
