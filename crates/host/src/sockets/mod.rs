//! Where a machine listens, which process does, and which of its services talk to each other.
//!
//! Reads the tables in `/proc/net`; of TCP the kernel is asked by netlink, where it can be. Which
//! process holds a socket stands only in the lists of
//! open files, which are costly: they are walked when a listening socket appears that was not
//! there before, and then remembered.
//!
//! # Invariants
//! - What could not be resolved has no process; it is never guessed.
//! - A connection once observed stays as long as both its services run and it is listened
//!   for: a request each minute is a dependency all the time.
//!
//! Not seen: sockets of other network namespaces (containers), who is connected to a unix
//! socket, and listeners beyond [`SOCKETS_MAX`].

pub(crate) mod table;

use crate::netlink;
use crate::process::{ProcDirectory, Scanner, View};
use crate::text::decimal;
use crate::{Rights, Root};
use model::entity;
use rustix::net::AddressFamily;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use table::{CLOSED, ESTABLISHED, LISTENING, Row, UnixRow, each_line};

/// Listening sockets that are kept.
pub const SOCKETS_MAX: usize = 4096;
/// Connections that are looked at.
const CONNECTIONS_MAX: usize = 8192;
/// Observed dependencies that are kept.
const OBSERVED_MAX: usize = 1024;
/// Open files of one process that are looked at.
const OPEN_FILES_MAX: usize = 65_536;
/// A socket that nobody seemed to hold is looked up again after 1, 2, 4, … observations, at
/// most 32: its process may be too young to be known.
const RETRY_DOUBLINGS: u8 = 5;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// How much to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only who listens.
    Listeners,
    /// Also who talks to whom, which walks the open files more often.
    Connections,
}

/// What one observation came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    pub sockets: Vec<entity::Socket>,
    /// Services that were seen talking to another of this host, now or before.
    pub connections: Vec<Connection>,
    /// Listening sockets whose process is not known, by our rights or because it has none.
    pub unresolved: usize,
    /// There were more sockets than are looked at.
    pub truncated: bool,
    /// There were more connections than are looked at, when they were last.
    pub connections_truncated: bool,
}

impl Observation {
    /// What can't be seen by our rights, and what would let it.
    #[must_use]
    pub fn limits(&self, rights: Rights) -> Vec<String> {
        let mut limits = Vec::new();
        if self.unresolved > 0 && !rights.may_trace {
            let way = rights.way("CAP_SYS_PTRACE");
            limits.push(format!("which processes hold others' sockets; {way}"));
        }
        if self.truncated {
            limits.push(format!("sockets beyond the first {SOCKETS_MAX}"));
        }
        if self.connections_truncated {
            limits
                .push(format!("who talks to whom beyond the first {CONNECTIONS_MAX} connections"));
        }
        limits
    }
}

/// One service of this host talking to another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// Unit of the client.
    pub from: String,
    /// Unit of the server.
    pub to: String,
    /// What the client connects to: `tcp 127.0.0.1:6379`.
    pub by: String,
}

/// A process that holds a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    pid: u32,
    start_ticks: u64,
}

/// When a holder was looked for last and not found, and how often before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Missed {
    round: u32,
    times: u8,
}

impl Missed {
    fn is_due(self, round: u32) -> bool {
        round.wrapping_sub(self.round) >= 1 << self.times.min(RETRY_DOUBLINGS)
    }
}

/// A listening socket before its process is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    protocol: &'static str,
    /// `0.0.0.0:80` or a path.
    name: String,
    at: Option<SocketAddr>,
    uid: Option<u32>,
    inode: u64,
}

/// Reads sockets, and remembers who holds them.
#[derive(Debug)]
pub struct Sockets {
    root: Root,
    files: ProcDirectory,
    /// By inode.
    holders: HashMap<u64, Result<Holder, Missed>>,
    /// UDP sockets on ports that the kernel hands out, seen last time.
    passing: HashSet<u64>,
    observed: BTreeSet<Connection>,
    round: u32,
    buffer: Vec<u8>,
    /// Whether the kernel can be asked about TCP without its files.
    by_netlink: bool,
    connections_truncated: bool,
}

/// What the tables say, before anyone is asked who holds what.
#[derive(Debug, Default)]
struct Tables {
    listeners: Vec<Listener>,
    established: Vec<Row>,
    truncated: bool,
    connections_truncated: bool,
}

impl Sockets {
    /// # Errors
    /// When there is no `/proc` to open.
    pub fn new(root: &Root) -> Result<Self, Error> {
        let path = root.proc("");
        let files = ProcDirectory::open(&path).map_err(|source| Error::Open { path, source })?;
        Ok(Self {
            root: root.clone(),
            files,
            holders: HashMap::new(),
            passing: HashSet::new(),
            observed: BTreeSet::new(),
            round: 0,
            buffer: Vec::new(),
            by_netlink: root.is_live(),
            connections_truncated: false,
        })
    }

    /// Looks at all sockets. `scanner` knows the processes; it should have scanned just before.
    ///
    /// # Errors
    /// When `/proc/net/tcp` can't be read. A machine without IPv6 is no error.
    pub fn observe(&mut self, scanner: &Scanner, depth: Depth) -> Result<Observation, Error> {
        self.round = self.round.wrapping_add(1);
        let tables = self.read_tables(depth)?;
        let talks = talks(&tables);
        let wanted: HashSet<u64> = (tables.listeners.iter().map(|listener| listener.inode))
            .chain(talks.iter().map(|talk| talk.client))
            .filter(|&inode| inode != 0)
            .collect();
        self.forget_holders(&wanted, scanner, depth);
        self.find_holders(&wanted, &tables, scanner, depth);
        if depth == Depth::Connections {
            self.connections_truncated = tables.connections_truncated;
        }
        self.remember_connections(&tables, &talks, scanner);
        let mut sockets = BTreeMap::new();
        let mut unresolved = 0;
        for listener in &tables.listeners {
            let holder = self.holder(listener.inode, scanner);
            unresolved += usize::from(holder.is_none());
            let socket = item(listener, holder.as_ref());
            sockets.entry(socket.id.clone()).or_insert(socket);
        }
        Ok(Observation {
            sockets: sockets.into_values().collect(),
            connections: self.observed.iter().cloned().collect(),
            unresolved,
            truncated: tables.truncated,
            connections_truncated: self.connections_truncated,
        })
    }

    fn read_tables(&mut self, depth: Depth) -> Result<Tables, Error> {
        let mut tables = self.read_tcp(depth)?;
        let passing_ports = self.passing_ports();
        let mut passing = HashSet::new();
        for file in ["udp", "udp6"] {
            let before = &self.passing;
            let read =
                each_line(&self.root.proc(format!("net/{file}")), &mut self.buffer, |line| {
                    let Some(row) = Row::parse(line).filter(|row| row.state == CLOSED) else {
                        return true;
                    };
                    let passes = passing_ports.contains(&row.local.port());
                    // A question to a name server is over by the next time.
                    if !passes || before.contains(&row.inode) {
                        tables.listen("udp", &row);
                    }
                    if passes {
                        passing.insert(row.inode);
                    }
                    passing.len() < SOCKETS_MAX
                });
            if let Err(error) = read {
                tracing::debug!(%error, file, "sockets can't be read");
            }
        }
        self.passing = passing;
        let mut inodes = HashSet::new();
        let read = each_line(&self.root.proc("net/unix"), &mut self.buffer, |line| {
            // A path with a newline in it could repeat another's line: the first one counts.
            if let Some(row) = UnixRow::parse(line).filter(|row| inodes.insert(row.inode)) {
                tables.push(Listener {
                    protocol: "unix",
                    name: row.path,
                    at: None,
                    uid: None,
                    inode: row.inode,
                });
            }
            !tables.truncated
        });
        if let Err(error) = read {
            tracing::debug!(%error, "unix sockets can't be read");
        }
        Ok(tables)
    }

    /// Who listens by TCP, and who is connected.
    fn read_tcp(&mut self, depth: Depth) -> Result<Tables, Error> {
        if self.by_netlink {
            let mut tables = Tables::default();
            match tables.ask_for_tcp(depth) {
                Ok(()) => return Ok(tables),
                Err(error) => {
                    tracing::debug!(%error, "TCP sockets come from /proc");
                    self.by_netlink = !is_for_good(&error);
                }
            }
        }
        let mut tables = Tables::default();
        for file in ["tcp", "tcp6"] {
            let path = self.root.proc(format!("net/{file}"));
            let read = each_line(&path, &mut self.buffer, |line| {
                // The kernel lists those that listen first.
                Row::parse(line).is_none_or(|row| {
                    tables.take_tcp(row);
                    row.state == LISTENING || depth == Depth::Connections
                })
            });
            match read {
                Err(source) if file == "tcp" => return Err(Error::Read { path, source }),
                _ => {}
            }
        }
        if depth == Depth::Listeners {
            tables.established.clear();
        }
        Ok(tables)
    }

    /// The ports a kernel hands out by itself.
    fn passing_ports(&self) -> std::ops::RangeInclusive<u16> {
        let text = std::fs::read_to_string(self.root.proc("sys/net/ipv4/ip_local_port_range"));
        let mut ports = text.as_deref().unwrap_or_default().split_whitespace().map(str::parse);
        match (ports.next(), ports.next()) {
            (Some(Ok(first)), Some(Ok(last))) => first..=last,
            _ => 32_768..=60_999,
        }
    }

    /// Forgets sockets that are gone, and holders. Who talks to whom is not known
    /// of listeners alone, and would else have to be found anew each time.
    fn forget_holders(&mut self, wanted: &HashSet<u64>, scanner: &Scanner, depth: Depth) {
        self.holders.retain(|inode, _| wanted.contains(inode) || depth == Depth::Listeners);
        // Another may hold what the one that is gone did, and is looked for among all.
        let at_once = Missed { round: self.round.wrapping_sub(1), times: 0 };
        for holder in self.holders.values_mut() {
            if holder.is_ok_and(|holder| !holder.is_there(scanner)) {
                *holder = Err(at_once);
            }
        }
    }

    /// Finds who holds the sockets that are not known yet.
    ///
    /// A connection that is there for the first time after a scan is held by none that did nothing
    /// before that. If it is all the same, it is found when it is looked for again: until then a
    /// dependency is not seen. Who listens is looked for among all.
    fn find_holders(
        &mut self,
        wanted: &HashSet<u64>,
        tables: &Tables,
        scanner: &Scanner,
        depth: Depth,
    ) {
        let round = self.round;
        let is_unknown = |inode: &u64| match self.holders.get(inode) {
            None => true,
            Some(Err(missed)) => missed.is_due(round),
            Some(Ok(_)) => false,
        };
        let mut unknown: HashSet<u64> = wanted.iter().copied().filter(is_unknown).collect();
        if unknown.is_empty() {
            return;
        }
        let skips_quiet = depth == Depth::Connections
            && !unknown.iter().any(|inode| self.holders.contains_key(inode))
            && !tables.listeners.iter().any(|listener| unknown.contains(&listener.inode));
        // Of all that share a socket the oldest is its owner, but for the first process,
        // which opens sockets on behalf of others.
        let mut processes: Vec<Holder> = scanner
            .processes()
            .filter(|process| process.group_id().is_some() && !(skips_quiet && process.is_quiet))
            .map(|process| Holder { pid: process.pid, start_ticks: process.start_ticks })
            .collect();
        processes.sort_unstable_by_key(|holder| (holder.pid == 1, holder.start_ticks, holder.pid));
        for holder in processes {
            let holders = &mut self.holders;
            // A process whose files we may not list holds what stays unresolved.
            let _denied = self.files.open_files(holder.pid, OPEN_FILES_MAX, |target| {
                if let Some(inode) = socket_inode(target).filter(|inode| unknown.remove(inode)) {
                    holders.insert(inode, Ok(holder));
                }
                !unknown.is_empty()
            });
            if unknown.is_empty() {
                return;
            }
        }
        for inode in unknown {
            let times = match self.holders.get(&inode) {
                Some(Err(missed)) => missed.times.saturating_add(1),
                _ => 0,
            };
            self.holders.insert(inode, Err(Missed { round, times }));
        }
    }

    fn holder<'s>(&self, inode: u64, scanner: &'s Scanner) -> Option<View<'s>> {
        match self.holders.get(&inode) {
            Some(Ok(holder)) => scanner.process(holder.pid),
            _ => None,
        }
    }

    fn remember_connections(&mut self, tables: &Tables, talks: &[Talk], scanner: &Scanner) {
        for talk in talks {
            let unit = |inode| {
                let unit = self.holder(inode, scanner)?.unit()?;
                unit.ends_with(".service").then(|| unit.to_owned())
            };
            let (Some(from), Some(to)) = (unit(talk.client), unit(talk.server)) else { continue };
            if from != to && self.observed.len() < OBSERVED_MAX {
                self.observed.insert(Connection { from, to, by: format!("tcp {}", talk.to) });
            }
        }
        if self.observed.is_empty() {
            return;
        }
        let running: HashSet<&str> = scanner.processes().filter_map(|p| p.unit()).collect();
        let ports: HashSet<u16> =
            tables.listeners.iter().filter_map(|listener| Some(listener.at?.port())).collect();
        self.observed.retain(|connection| {
            let port = connection.by.rsplit(':').next().and_then(|port| port.parse().ok());
            running.contains(connection.from.as_str())
                && running.contains(connection.to.as_str())
                && port.is_some_and(|port| ports.contains(&port))
        });
    }
}

/// Whether the kernel can't be asked, now or ever: what it takes is not there, or not allowed.
fn is_for_good(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotFound, PermissionDenied, Unsupported};
    matches!(error.kind(), NotFound | PermissionDenied | Unsupported | InvalidInput)
}

impl Holder {
    fn is_there(&self, scanner: &Scanner) -> bool {
        scanner.process(self.pid).is_some_and(|view| view.start_ticks == self.start_ticks)
    }
}

impl Tables {
    /// Asks the kernel. A machine without IPv6 is no error.
    fn ask_for_tcp(&mut self, depth: Depth) -> io::Result<()> {
        let both = [AddressFamily::INET, AddressFamily::INET6];
        for family in both {
            self.ask_for_tcp_in(family, LISTENING)?;
        }
        if depth == Depth::Connections {
            for family in both {
                self.ask_for_tcp_in(family, ESTABLISHED)?;
            }
        }
        Ok(())
    }

    fn ask_for_tcp_in(&mut self, family: AddressFamily, state: u8) -> io::Result<()> {
        let asked = netlink::tcp_sockets(family, 1 << state, |message| {
            if let Some(row) = Row::of_message(message).filter(|row| row.state == state) {
                self.take_tcp(row);
            }
            state == LISTENING || !self.connections_truncated
        });
        match asked {
            Err(error)
                if family == AddressFamily::INET6 && error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            asked => asked,
        }
    }

    fn take_tcp(&mut self, row: Row) {
        match row.state {
            LISTENING => self.listen("tcp", &row),
            ESTABLISHED => self.establish(row),
            _ => {}
        }
    }

    fn listen(&mut self, protocol: &'static str, row: &Row) {
        self.push(Listener {
            protocol,
            name: row.local.to_string(),
            at: Some(row.local),
            uid: Some(row.uid),
            inode: row.inode,
        });
    }

    fn push(&mut self, listener: Listener) {
        if self.listeners.len() < SOCKETS_MAX {
            self.listeners.push(listener);
        } else {
            self.truncated = true;
        }
    }

    fn establish(&mut self, row: Row) {
        if self.established.len() < CONNECTIONS_MAX {
            self.established.push(row);
        } else {
            self.connections_truncated = true;
        }
    }
}

/// A connection within this host, by the inodes of the client's socket and of the listener's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Talk {
    client: u64,
    server: u64,
    to: SocketAddr,
}

/// The established connections whose other end is on this host, too, and listened for.
fn talks(tables: &Tables) -> Vec<Talk> {
    let key = |address: SocketAddr| (address.ip().to_canonical(), address.port());
    let ends: HashSet<_> =
        tables.established.iter().map(|row| (key(row.local), key(row.remote))).collect();
    let mut listeners: HashMap<(IpAddr, u16), u64> = HashMap::new();
    let mut everywhere: HashMap<u16, u64> = HashMap::new();
    for listener in tables.listeners.iter().filter(|listener| listener.protocol == "tcp") {
        let Some(at) = listener.at else { continue };
        if at.ip().is_unspecified() {
            everywhere.entry(at.port()).or_insert(listener.inode);
        } else {
            listeners.entry(key(at)).or_insert(listener.inode);
        }
    }
    let client = |row: &Row| {
        let (local, remote) = (key(row.local), key(row.remote));
        // Both ends are in the table only when both are here.
        if row.inode == 0 || !ends.contains(&(remote, local)) {
            return None;
        }
        let server = listeners.get(&remote).or_else(|| everywhere.get(&remote.1))?;
        Some(Talk { client: row.inode, server: *server, to: SocketAddr::new(remote.0, remote.1) })
    };
    tables.established.iter().filter_map(client).collect()
}

/// The inode in `socket:[123]`.
fn socket_inode(target: &[u8]) -> Option<u64> {
    decimal(target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?)
}

fn item(listener: &Listener, holder: Option<&View<'_>>) -> entity::Socket {
    let address = listener.at.map_or_else(|| listener.name.clone(), |at| at.ip().to_string());
    entity::Socket {
        id: format!("{} {}", listener.protocol, listener.name),
        protocol: listener.protocol.to_owned(),
        address,
        port: listener.at.map(|at| i64::from(at.port())),
        process: holder.map(View::name),
        unit: holder.and_then(|view| view.unit()).map(str::to_owned),
        container: holder.and_then(|view| view.container()).map(str::to_owned),
        uid: listener.uid.or_else(|| holder?.uid()).map(i64::from),
    }
}

#[cfg(test)]
mod tests;
