//! What the fuzzer needs of the host crate's private parts. Exists under `--cfg fuzzing` alone.

use crate::exec_events::Message;
use crate::network::{self, Network};
use crate::packages::rpm;
use crate::sockets::table::Row;
use crate::{netlink, text};
use model::entity::Package;

/// What the kernel told of interfaces, their addresses and the routes.
#[must_use]
pub fn network(links: &[u8], addresses: &[u8], routes: &[u8]) -> Network {
    for answer in [links, addresses, routes] {
        let _ended = netlink::scan(answer);
        let _way = network::parse_way(answer);
    }
    network::parse(links, addresses, routes)
}

/// What the kernel told of TCP sockets, and of processes that began and ended.
pub fn messages(answer: &[u8]) {
    let _event = Message::parse(answer);
    let Ok(_ended) = netlink::scan(answer) else { return };
    for (_, body) in netlink::messages(answer) {
        let _row = Row::of_message(body);
    }
}

/// `rpm`'s list of packages, and its list of files.
///
/// # Panics
/// When a path is none.
#[must_use]
pub fn rpm(packages: &[u8], files: &[u8]) -> Vec<Package> {
    for file in text::lines(files).filter_map(rpm::file) {
        assert!(file.path.starts_with('/') && !file.path.contains('\n'));
        assert!(!file.package.contains('\t'));
    }
    let packages = rpm::parse(packages).packages;
    assert!(packages.iter().all(|(name, package)| *name == package.name));
    packages.into_values().collect()
}
