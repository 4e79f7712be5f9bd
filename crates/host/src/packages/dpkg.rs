//! dpkg's database: `/var/lib/dpkg/status` and the lists of files beside it.

use super::{Database, Error, merged, read_database, word};
use crate::Root;
use crate::bounded;
use crate::text::words;
use model::entity::Package;
use std::collections::{BTreeMap, HashMap};

/// Bytes read of one package's list of files; kernels' modules have 1 MB.
const LIST_MAX: u64 = 32 * 1024 * 1024;

pub(super) fn read(root: &Root) -> Result<Database, Error> {
    let path = root.path("/var/lib/dpkg/status");
    Ok(parse(&read_database(&path)?))
}

/// One paragraph of the status file, as far as it is of interest.
#[derive(Debug, Default)]
struct Paragraph {
    name: Option<String>,
    selection: Option<String>,
    state: Option<String>,
    version: Option<String>,
    architecture: Option<String>,
    configuration: Vec<String>,
}

pub(super) fn parse(status: &[u8]) -> Database {
    let mut paragraphs = Vec::new();
    let mut current = Paragraph::default();
    let mut in_conffiles = false;
    for line in status.split(|&b| b == b'\n') {
        if line.trim_ascii().is_empty() {
            paragraphs.push(std::mem::take(&mut current));
            in_conffiles = false;
        } else if line.starts_with(b" ") || line.starts_with(b"\t") {
            if in_conffiles {
                current.configuration.extend(conffile(line));
            }
        } else {
            in_conffiles = current.field(line);
        }
    }
    paragraphs.push(current);
    database(paragraphs)
}

impl Paragraph {
    /// Takes a field's first line; says whether its further lines are configuration files.
    fn field(&mut self, line: &[u8]) -> bool {
        let Some(colon) = line.iter().position(|&b| b == b':') else { return false };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        match name {
            b"Package" => self.name = word(value),
            b"Version" => self.version = word(value),
            b"Architecture" => self.architecture = word(value),
            b"Status" => {
                // `install ok installed`: what is wanted, an error flag, what is.
                let mut parts = words(value);
                self.selection = parts.next().and_then(word);
                self.state = parts.nth(1).and_then(word);
            }
            b"Conffiles" => return true,
            _ => {}
        }
        false
    }
}

/// ` /etc/x.conf 0123456789abcdef [obsolete]`. A path may have spaces in it.
fn conffile(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let text = text.strip_suffix(" remove-on-upgrade").unwrap_or(text);
    let text = text.strip_suffix(" obsolete").unwrap_or(text);
    let (path, _hash) = text.rsplit_once(' ')?;
    (path.starts_with('/') && !path.chars().any(char::is_control)).then(|| path.to_owned())
}

fn database(paragraphs: Vec<Paragraph>) -> Database {
    // dpkg itself is always of the native architecture.
    let native = paragraphs
        .iter()
        .find(|paragraph| paragraph.name.as_deref() == Some("dpkg"))
        .and_then(|paragraph| paragraph.architecture.clone());
    let mut packages = BTreeMap::new();
    let mut configuration = BTreeMap::new();
    for paragraph in paragraphs {
        let (Some(name), Some(state)) = (paragraph.name, paragraph.state) else { continue };
        if state == "not-installed" {
            continue;
        }
        let state = match (state.as_str(), paragraph.selection.as_deref()) {
            ("installed", Some("hold")) => Some("hold".to_owned()),
            ("installed", _) => None,
            _ => Some(state),
        };
        let foreign = paragraph.architecture.as_ref().filter(|architecture| {
            architecture.as_str() != "all"
                && native.as_ref().is_some_and(|native| native != *architecture)
        });
        let name = match foreign {
            Some(architecture) => format!("{name}:{architecture}"),
            None => name,
        };
        if !paragraph.configuration.is_empty() {
            configuration.insert(name.clone(), paragraph.configuration);
        }
        let package = Package {
            name: name.clone(),
            version: paragraph.version.unwrap_or_default(),
            architecture: paragraph.architecture,
            manager: "dpkg".to_owned(),
            state,
        };
        packages.insert(name, package);
    }
    Database { packages, configuration }
}

/// Reads the lists of files of all packages once, for the paths asked about: a map from the
/// merged form of a path to the path.
pub(super) fn owners(root: &Root, asked: &HashMap<&str, &str>) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let Ok(entries) = std::fs::read_dir(root.path("/var/lib/dpkg/info")) else { return found };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(package) = name.to_str().and_then(|name| name.strip_suffix(".list")) else {
            continue;
        };
        let Ok(list) = bounded::read(&entry.path(), LIST_MAX) else { continue };
        for line in list.split(|&b| b == b'\n') {
            let path = std::str::from_utf8(line).ok().and_then(|path| asked.get(merged(path)));
            if let Some(path) = path {
                let package = package.split_once(':').map_or(package, |(name, _)| name);
                found.insert((*path).to_owned(), package.to_owned());
            }
        }
    }
    found
}
