//! apk's database: one file with a letter per field and a paragraph per package.

use super::{Database, Error, merged, read_database, word};
use crate::Root;
use model::entity::Package;
use std::collections::HashMap;

pub(super) fn read(root: &Root) -> Result<Database, Error> {
    let path = root.path("/lib/apk/db/installed");
    Ok(parse(&read_database(&path)?))
}

pub(super) fn parse(installed: &[u8]) -> Database {
    let mut database = Database::default();
    let mut package = Package::default();
    let mut configuration = Vec::new();
    for line in installed.split(|&b| b == b'\n').chain([&b""[..]]) {
        match field(line) {
            Some((b'P', value)) => package.name = word(value).unwrap_or_default(),
            Some((b'V', value)) => package.version = word(value).unwrap_or_default(),
            Some((b'A', value)) => package.architecture = word(value),
            _ if !line.is_empty() => {}
            _ if package.name.is_empty() => package = Package::default(),
            _ => {
                package.manager = "apk".to_owned();
                let name = package.name.clone();
                database.packages.insert(name, std::mem::take(&mut package));
            }
        }
    }
    // What apk protects on upgrades is what lies below /etc.
    each_file(installed, |name, path| {
        if path.starts_with("/etc/") && !path.chars().any(char::is_control) {
            configuration.push((name.to_owned(), path.to_owned()));
        }
    });
    for (name, path) in configuration {
        database.configuration.entry(name).or_default().push(path);
    }
    database
}

fn field(line: &[u8]) -> Option<(u8, &[u8])> {
    match line {
        [letter, b':', value @ ..] => Some((*letter, value)),
        _ => None,
    }
}

/// Calls `visit` with the package and path of each file: `F:` has a directory, `R:` a name in
/// it.
fn each_file(installed: &[u8], mut visit: impl FnMut(&str, &str)) {
    let mut name = String::new();
    let mut directory = String::new();
    for line in installed.split(|&b| b == b'\n') {
        let Some((letter, value)) = field(line) else { continue };
        let Ok(value) = std::str::from_utf8(value) else { continue };
        match letter {
            b'P' => value.clone_into(&mut name),
            b'F' => value.clone_into(&mut directory),
            b'R' if directory.is_empty() => visit(&name, &format!("/{value}")),
            b'R' => visit(&name, &format!("/{directory}/{value}")),
            _ => {}
        }
    }
}

pub(super) fn owners(root: &Root, asked: &HashMap<&str, &str>) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let Ok(installed) = read_database(&root.path("/lib/apk/db/installed")) else { return found };
    each_file(&installed, |package, path| {
        if let Some(path) = asked.get(merged(path)) {
            found.insert((*path).to_owned(), package.to_owned());
        }
    });
    found
}
