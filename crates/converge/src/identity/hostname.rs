//! The machine's name: the kernel's, the one of the next boot, and its own address.

use super::{Error, file, is_live};
use model::HostName;
use rustix::system::{sethostname, uname};
use std::path::Path;

/// Where Debian has a machine's own name, so that it resolves without a network.
const OWN: &[u8] = b"127.0.1.1";

pub(crate) fn set(root: &Path, name: &HostName) -> Result<(), Error> {
    if is_live(root) {
        let is_set = || uname().nodename().to_bytes() == name.as_str().as_bytes();
        if !is_set() {
            let set = sethostname(name.as_str().as_bytes());
            set.map_err(Error::kernel("take the host name"))?;
            if !is_set() {
                return Err(Error::Unchanged(uname().nodename().to_string_lossy().into_owned()));
            }
        }
    }
    file::ensure(&root.join("etc/hostname"), format!("{name}\n").as_bytes(), 0o644)?;
    let path = root.join("etc/hosts");
    let old = file::read(&path)?.unwrap_or_default();
    Ok(file::ensure(&path, &hosts(&old, name), 0o644)?)
}

/// `/etc/hosts` with this name as the machine's own.
fn hosts(old: &[u8], name: &HostName) -> Vec<u8> {
    // The full name comes first, as `hostname --fqdn` takes it.
    let names = match name.as_str().split_once('.') {
        Some((short, _)) => format!("{name} {short}"),
        None => name.to_string(),
    };
    let own = [OWN, b"\t", names.as_bytes(), b"\n"].concat();
    let address = |line: &[u8]| {
        let words = line.split(u8::is_ascii_whitespace);
        words.into_iter().find(|word| !word.is_empty()).unwrap_or_default().to_vec()
    };
    let lines: Vec<&[u8]> = old.split_inclusive(|&b| b == b'\n').collect();
    let place = lines.iter().position(|line| address(line) == OWN).unwrap_or_else(|| {
        let loopback = lines.iter().rposition(|line| address(line).starts_with(b"127."));
        loopback.map_or(0, |at| at + 1)
    });
    let mut new = Vec::with_capacity(old.len() + own.len());
    for (at, line) in lines.iter().enumerate() {
        if at == place {
            new.extend_from_slice(&own);
        }
        if address(line) != OWN {
            new.extend_from_slice(line);
            if !line.ends_with(b"\n") {
                new.push(b'\n');
            }
        }
    }
    if place == lines.len() {
        new.extend_from_slice(&own);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;
    use std::fs;

    fn check(old: &str, name: &str, expected: &Expect) {
        let name = name.parse().unwrap();
        let new = hosts(old.as_bytes(), &name);
        assert_eq!(hosts(&new, &name), new, "once more changes nothing");
        expected.assert_eq(&String::from_utf8(new).unwrap());
    }

    #[test]
    fn own_lines() {
        check("", "a", &expect!["127.0.1.1\ta\n"]);
        check(
            "# ours\n127.0.0.1 localhost\n::1 localhost",
            "web01",
            &expect![[r#"
                # ours
                127.0.0.1 localhost
                127.0.1.1	web01
                ::1 localhost
            "#]],
        );
        check(
            "127.0.0.1 localhost\n  127.0.1.1 old.example old\n10.0.0.1 old\n127.0.1.1 older\n",
            "new.example",
            &expect![[r#"
                127.0.0.1 localhost
                127.0.1.1	new.example new
                10.0.0.1 old
            "#]],
        );
    }

    proptest! {
        #[test]
        fn others_lines_stay(old in "([ -~\t]{0,20}\n){0,5}") {
            let name: HostName = "web01".parse().unwrap();
            let new = hosts(old.as_bytes(), &name);
            let text = String::from_utf8(new.clone()).unwrap();
            let kept = |text: &str| -> Vec<String> {
                let own = |line: &&str| line.split_whitespace().next() != Some("127.0.1.1");
                text.lines().filter(own).map(str::to_owned).collect()
            };
            prop_assert_eq!(kept(&text), kept(&old));
            prop_assert_eq!(text.lines().filter(|line| *line == "127.0.1.1\tweb01").count(), 1);
            prop_assert_eq!(hosts(&new, &name), new);
        }
    }

    #[test]
    fn files_of_a_tree() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/hostname"), "old\n").unwrap();
        let before = uname().nodename().to_owned();
        set(root.path(), &"new".parse().unwrap()).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("etc/hostname")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(root.path().join("etc/hosts")).unwrap(), "127.0.1.1\tnew\n");
        assert_eq!(uname().nodename(), before.as_c_str());
    }
}
