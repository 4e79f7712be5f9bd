//! rpm's database, whose format only rpm knows: asks `rpm`, with fixed arguments and a
//! deadline, without a shell.

use super::{Database, Error, merged, word};
use crate::Root;
use model::entity::Package;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where the database is, in its several formats.
pub(super) const DATABASES: [&str; 6] = [
    "/var/lib/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages.db",
    "/var/lib/rpm/Packages",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/Packages.db",
    "/usr/lib/sysimage/rpm/Packages",
];

const PROGRAM: &str = "rpm";
/// Bytes of one answer: the names of about three million files.
const ANSWER_MAX: usize = 256 * 1024 * 1024;
/// Bytes of one line of an answer.
const LINE_MAX: usize = 64 * 1024;

const PACKAGES: &str = "%{NAME}\\t%{EPOCHNUM}:%{VERSION}-%{RELEASE}\\t%{ARCH}\\n";
const FILES: &str = "[%{FILEFLAGS:fflags}\\t%{=NAME}\\t%{FILENAMES}\\n]";

/// The program, and how long it may take.
#[derive(Debug, Clone)]
pub(super) struct Rpm {
    /// The program, behind what it is begun with.
    pub(super) command: Vec<OsString>,
    /// To tell all that is installed, or all files of it, where nobody waits for it.
    pub(super) deadline: Duration,
    /// To tell which packages own some files: who asks waits for it.
    pub(super) owners_deadline: Duration,
}

impl Default for Rpm {
    fn default() -> Self {
        Self {
            command: vec![PROGRAM.into()],
            deadline: Duration::from_secs(30),
            owners_deadline: Duration::from_secs(8),
        }
    }
}

impl Rpm {
    /// All that is installed, and on the way who owns these paths.
    pub(super) fn read(
        &self,
        root: &Root,
        asked: &HashSet<String>,
    ) -> Result<(Database, HashMap<String, Option<String>>), Error> {
        let until = Instant::now() + self.deadline;
        let mut answer = Vec::new();
        self.list(root, PACKAGES, (until, self.deadline), |line| {
            answer.extend_from_slice(line);
            answer.push(b'\n');
        })?;
        let mut database = parse(&answer);
        let mut owners = Owners::of(asked);
        self.list(root, FILES, (until, self.deadline), |line| {
            let Some(File { flags, package, path }) = file(line) else { return };
            owners.note(path, package);
            if flags.contains('c') && path.starts_with("/etc/") {
                let of_package = database.configuration.entry(package.to_owned());
                of_package.or_default().push(path.to_owned());
            }
        })?;
        Ok((database, owners.told()))
    }

    /// One listing of all files of all packages: rpm's answers to single paths don't name them.
    pub(super) fn owners(
        &self,
        root: &Root,
        asked: &HashSet<String>,
        deadline: Duration,
    ) -> Result<HashMap<String, Option<String>>, Error> {
        let mut owners = Owners::of(asked);
        self.list(root, FILES, (Instant::now() + deadline, deadline), |line| {
            let Some(File { package, path, .. }) = file(line) else { return };
            owners.note(path, package);
        })?;
        Ok(owners.told())
    }

    /// Gives each line about all packages to `visit`.
    fn list(
        &self,
        root: &Root,
        form: &str,
        (until, deadline): (Instant, Duration),
        visit: impl FnMut(&[u8]),
    ) -> Result<(), Error> {
        let failed = |source| Error::Run { program: PROGRAM, source };
        let (program, begin) =
            self.command.split_first().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        let mut command = Command::new(program);
        command.args(begin);
        if !root.is_live() {
            command.arg("--root").arg(root.path("/"));
        }
        command.args(["-qa", "--qf", form]);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        let answered = read_lines(&mut child, until, visit);
        if let Err(error) = answered {
            end(child).map_err(failed)?;
            return Err(match error.kind() {
                io::ErrorKind::TimedOut => {
                    Error::Deadline { program: PROGRAM, seconds: deadline.as_secs() }
                }
                _ => failed(error),
            });
        }
        let status = child.wait().map_err(failed)?;
        if !status.success() {
            return Err(Error::Failed { program: PROGRAM, message: status.to_string() });
        }
        Ok(())
    }
}

/// Which packages own the paths that were asked about, in either form of these.
struct Owners<'a> {
    asked: &'a HashSet<String>,
    by_form: HashMap<&'a str, Option<String>>,
}

impl<'a> Owners<'a> {
    fn of(asked: &'a HashSet<String>) -> Self {
        Self { asked, by_form: asked.iter().map(|path| (merged(path), None)).collect() }
    }

    fn note(&mut self, path: &str, package: &str) {
        if let Some(owner) = self.by_form.get_mut(merged(path)) {
            *owner = Some(package.to_owned());
        }
    }

    fn told(self) -> HashMap<String, Option<String>> {
        let owner = |path: &str| self.by_form.get(merged(path)).cloned().flatten();
        self.asked.iter().map(|path| (path.clone(), owner(path))).collect()
    }
}

/// Kills it. That it is gone is waited for elsewhere: one that hangs in the kernel takes its time.
fn end(mut child: Child) -> io::Result<()> {
    child.kill()?;
    let reaping = thread::Builder::new().name("rpm".to_owned());
    reaping.spawn(move || child.wait()).map(|_ends_by_itself| ())
}

/// `NAME <tab> EPOCH:VERSION-RELEASE <tab> ARCHITECTURE` per line.
pub(crate) fn parse(answer: &[u8]) -> Database {
    let mut database = Database::default();
    let mut entries: Vec<(String, Package)> =
        crate::text::lines(answer).filter_map(entry).collect();
    entries.sort_by(|(_, a), (_, b)| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    for (name, package) in entries {
        // Several versions (kernels) or architectures of one name are told apart.
        let key = match database.packages.get(&name) {
            None => name,
            Some(other) if other.architecture != package.architecture => {
                format!("{name}:{}", package.architecture.as_deref().unwrap_or("none"))
            }
            Some(_) => format!("{name}-{}", package.version),
        };
        database.packages.insert(key.clone(), Package { name: key, ..package });
    }
    database
}

fn entry(line: &[u8]) -> Option<(String, Package)> {
    let mut fields = line.split(|&b| b == b'\t');
    let name = word(fields.next()?)?;
    let version = word(fields.next()?)?;
    let architecture = fields.next().and_then(word).filter(|arch| arch != "(none)");
    let package = Package {
        name: name.clone(),
        // An epoch of 0 is the same as none.
        version: version.strip_prefix("0:").unwrap_or(&version).to_owned(),
        architecture,
        manager: PROGRAM.to_owned(),
        state: None,
    };
    // Keys of the vendor are listed as packages and have no files.
    (name != "gpg-pubkey").then_some((name, package))
}

#[derive(Debug)]
pub(crate) struct File<'l> {
    flags: &'l str,
    pub(crate) package: &'l str,
    pub(crate) path: &'l str,
}

pub(crate) fn file(line: &[u8]) -> Option<File<'_>> {
    let line = std::str::from_utf8(line).ok()?;
    let (flags, line) = line.split_once('\t')?;
    let (package, path) = line.split_once('\t')?;
    let printable = !line.chars().any(|c| c.is_control() && c != '\t');
    (printable && path.starts_with('/')).then_some(File { flags, package, path })
}

/// Reads until the program closes its output. A line longer than [`LINE_MAX`] is cut.
fn read_lines(
    child: &mut Child,
    deadline: Instant,
    mut visit: impl FnMut(&[u8]),
) -> io::Result<()> {
    let Some(mut output) = child.stdout.take() else { return Ok(()) };
    let mut chunk = vec![0; 64 * 1024];
    let mut line = Vec::new();
    let mut total = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut waiting = [PollFd::new(&output, PollFlags::IN)];
        if poll(&mut waiting, Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let count = output.read(&mut chunk)?;
        let part = chunk.get(..count).unwrap_or_default();
        total += count;
        for piece in part.split_inclusive(|&b| b == b'\n') {
            let ended = piece.ends_with(b"\n");
            let room = LINE_MAX.saturating_sub(line.len());
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            line.extend_from_slice(text.get(..room).unwrap_or(text));
            if ended {
                visit(&line);
                line.clear();
            }
        }
        if count == 0 {
            return Ok(());
        }
        if total > ANSWER_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}
