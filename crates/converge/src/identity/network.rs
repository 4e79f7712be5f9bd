//! The network card's address, and what the machine has by it.
//!
//! ```text
//! files that know the card by its address ─► link down ─► address ─► link up ─► a new lease
//! ```

use super::link::{self, Change};
use super::{Error, file, is_live, program};
use model::MacAddress;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// For a program of systemd's to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// For the machine to have an address.
const LEASE: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const PAUSE: Duration = Duration::from_millis(50);
/// What `/sys/class/net/*/type` says of Ethernet.
const ETHERNET: &str = "1";

/// Where systems keep what the card is recognised by; cloud-init writes it into some of them.
const RECOGNISED: &[&str] = &[
    "etc/netplan",
    "etc/systemd/network",
    "run/systemd/network",
    "etc/udev/rules.d",
    "etc/network/interfaces.d",
    "etc/NetworkManager/system-connections",
    "run/NetworkManager/system-connections",
    "etc/sysconfig/network-scripts",
];

/// A network card.
#[derive(Debug)]
struct Card {
    name: String,
    link: u32,
    address: String,
}

pub(super) async fn set(root: &Path, mac: &MacAddress) -> Result<(), Error> {
    let card = only_card(root)?;
    let is_set = |card: &Card| card.address.eq_ignore_ascii_case(mac.as_str());
    let old = lease(root, &card);
    let (was_set, live) = (is_set(&card), is_live(root));
    if !was_set {
        recognise(root, &card.address, mac.as_str())?;
    }
    if !was_set && live {
        address(&card, mac)?;
        let seen = only_card(root)?;
        if !is_set(&seen) {
            return Err(Error::Unchanged(seen.address));
        }
    }
    match (live, root.join("run/systemd/netif/state").exists()) {
        (false, _) => Ok(()),
        (true, true) if was_set => wait(root, &card, None).await,
        (true, true) => {
            reload().await?;
            wait(root, &card, old.as_ref()).await
        }
        (true, false) if was_set => Ok(()),
        (true, false) => {
            let what =
                "systemd-networkd does not run, and what else sets up the network is not known";
            Err(Error::Unclear(what.to_owned()))
        }
    }
}

/// Down and up again is a lease already. This is for configuration that knows the card otherwise.
async fn reload() -> Result<(), Error> {
    program::run("networkctl", &[OsStr::new("reload")], ANSWER).await?;
    Ok(())
}

/// The card that is not made by software.
fn only_card(root: &Path) -> Result<Card, Error> {
    let all = root.join("sys/class/net");
    let mut cards = Vec::new();
    for name in file::names(&all)? {
        let directory = all.join(&name);
        if !directory.join("device").exists() || text(&directory.join("type"))? != ETHERNET {
            continue;
        }
        let link = text(&directory.join("ifindex"))?.parse();
        let link = link.map_err(|_no| Error::Unclear(format!("{name} has no number")))?;
        cards.push(Card { link, address: text(&directory.join("address"))?, name });
    }
    let count = cards.len();
    match cards.pop() {
        Some(card) if count == 1 => Ok(card),
        _ => Err(Error::Unclear(format!("the machine has {count} network cards, not one"))),
    }
}

fn text(path: &Path) -> Result<String, Error> {
    let content = file::read(path)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&content).trim().to_owned())
}

fn address(card: &Card, mac: &MacAddress) -> Result<(), Error> {
    let kernel = |doing| move |source| Error::Kernel { doing, source };
    // Down, so that what was derived from the old address goes, too.
    link::change(card.link, Change::Down).map_err(kernel("take the link down"))?;
    let changed = link::change(card.link, Change::Address(mac.octets()));
    link::change(card.link, Change::Up).map_err(kernel("bring the link up"))?;
    changed.map_err(kernel("change the card's address"))
}

/// Lets the configuration know the card by its new address.
fn recognise(root: &Path, old: &str, new: &str) -> Result<(), Error> {
    for directory in RECOGNISED {
        let directory = root.join(directory);
        for name in file::names(&directory)? {
            let path = directory.join(name);
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
                continue;
            }
            let Some(content) = file::read(&path)? else { continue };
            let changed = replaced(&content, old, new);
            if changed != content {
                file::replace(&path, &changed, 0o600)?;
            }
        }
    }
    Ok(())
}

/// The text with another address, however its letters are written.
fn replaced(content: &[u8], old: &str, new: &str) -> Vec<u8> {
    let mut made = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some((&first, after)) = rest.split_first() {
        match rest.split_at_checked(old.len()) {
            Some((found, behind)) if found.eq_ignore_ascii_case(old.as_bytes()) => {
                made.extend_from_slice(new.as_bytes());
                rest = behind;
            }
            _ => {
                made.push(first);
                rest = after;
            }
        }
    }
    made
}

/// What tells one lease from the next: networkd writes each to a new file.
#[derive(Debug, PartialEq, Eq)]
struct Lease(u64, i64, i64);

fn lease(root: &Path, card: &Card) -> Option<Lease> {
    let path = netif(root, "leases", card);
    let found = fs::metadata(path).ok()?;
    Some(Lease(found.ino(), found.mtime(), found.mtime_nsec()))
}

fn netif(root: &Path, what: &str, card: &Card) -> PathBuf {
    root.join("run/systemd/netif").join(what).join(card.link.to_string())
}

async fn wait(root: &Path, card: &Card, old: Option<&Lease>) -> Result<(), Error> {
    let began = Instant::now();
    // Who had a lease is not done without a new one.
    let has_new = || old.is_none_or(|old| lease(root, card).is_some_and(|new| new != *old));
    while !is_configured(root, card)? || !has_new() {
        if began.elapsed() > LEASE {
            let (name, limit) = (&card.name, LEASE.as_secs());
            return Err(Error::Unclear(format!("{name} has no address after {limit} s")));
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn is_configured(root: &Path, card: &Card) -> Result<bool, Error> {
    let state = text(&netif(root, "links", card))?;
    let says = |line| state.lines().any(|found| found == line);
    Ok(says("ADMIN_STATE=configured") && says("OPER_STATE=routable"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: &str = "52:54:00:00:00:01";
    const NEW: &str = "52:54:00:aa:bb:02";

    fn tree(cards: &[(&str, &str, bool)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (at, (name, kind, hardware)) in cards.iter().enumerate() {
            let directory = root.path().join("sys/class/net").join(name);
            fs::create_dir_all(&directory).unwrap();
            if *hardware {
                fs::create_dir(directory.join("device")).unwrap();
            }
            fs::write(directory.join("type"), format!("{kind}\n")).unwrap();
            fs::write(directory.join("ifindex"), format!("{}\n", at + 1)).unwrap();
            fs::write(directory.join("address"), format!("{OLD}\n")).unwrap();
        }
        root
    }

    fn check(cards: &[(&str, &str, bool)], expected: &str) {
        let root = tree(cards);
        let found = only_card(root.path());
        let said = found.map_or_else(|e| e.to_string(), |c| format!("{} {}", c.link, c.name));
        assert_eq!(said, expected);
    }

    #[test]
    fn cards() {
        let lo = ("lo", "772", false);
        check(&[lo], "the machine has 0 network cards, not one");
        check(&[lo, ("docker0", "1", false), ("eth0", "1", true)], "3 eth0");
        let two = [("eth0", "1", true), ("eth1", "1", true)];
        check(&two, "the machine has 2 network cards, not one");
        check(&[("ib0", "32", true)], "the machine has 0 network cards, not one");
    }

    #[tokio::test]
    async fn configuration_knows_the_new_address() {
        let root = tree(&[("eth0", "1", true)]);
        let put = |path: &str, content: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        put("etc/netplan/50-cloud-init.yaml", "macaddress: 52:54:00:00:00:01\n");
        put("etc/udev/rules.d/70-persistent-net.rules", "ATTR{address}==\"52:54:00:00:00:01\"");
        put("etc/systemd/network/10-other.network", "MACAddress=52:54:00:00:00:0F\n");
        set(root.path(), &NEW.parse().unwrap()).await.unwrap();
        let seen = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(seen("etc/netplan/50-cloud-init.yaml"), "macaddress: 52:54:00:aa:bb:02\n");
        assert!(seen("etc/udev/rules.d/70-persistent-net.rules").contains(NEW));
        assert!(seen("etc/systemd/network/10-other.network").contains(":0F"));
    }

    proptest! {
        #[test]
        fn only_the_address_changes(before in "[5-a:\n]{0,12}", after in "[ -~]{0,12}") {
            let upper = OLD.to_ascii_uppercase();
            let text = format!("{before}{upper}{after}");
            let made = replaced(text.as_bytes(), OLD, NEW);
            prop_assert_eq!(made, format!("{before}{NEW}{after}").into_bytes());
        }
    }
}
