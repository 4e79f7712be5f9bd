//! Sockets of a made-up machine, and of this one.

use super::*;
use crate::Now;
use model::redact::Redactor;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

fn row(local: &str, remote: &str, state: u8, inode: u64) -> String {
    format!(
        "   0: {local} {remote} {state:02X} 00000000:00000000 00:00000000 00000000   33        0 {inode} 1\n"
    )
}

/// `127.0.0.1:PORT` and `0.0.0.0:PORT` as the kernel writes them.
fn here(port: u16) -> String {
    format!("{:08X}:{port:04X}", u32::from_ne_bytes([127, 0, 0, 1]))
}

fn put_process(root: &Root, pid: u32, unit: &str, inodes: &[u64]) {
    let directory = root.proc(pid.to_string());
    fs::create_dir_all(directory.join("fd")).unwrap();
    let stat = format!("{pid} (p{pid}) S 1 0 0 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 4096 10 0\n");
    fs::write(directory.join("stat"), stat).unwrap();
    fs::write(directory.join("cmdline"), format!("p{pid}\0")).unwrap();
    fs::write(directory.join("status"), "Uid:\t0\t7\t0\t0\n").unwrap();
    fs::write(directory.join("cgroup"), format!("0::/system.slice/{unit}\n")).unwrap();
    for inode in inodes {
        symlink(format!("socket:[{inode}]"), directory.join(format!("fd/{inode}"))).unwrap();
    }
}

/// A web server that talks to a cache, a socket of pid 1 shared with its service.
fn machine() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    fs::create_dir_all(root.proc("net")).unwrap();
    let head = "  sl  local_address rem_address   st\n";
    let any = format!("00000000:{:04X}", 80);
    let none = "00000000:0000";
    let tcp = [
        head.to_owned(),
        row(&any, none, LISTENING, 100),
        row(&here(6379), none, LISTENING, 200),
        row(&here(40_000), &here(6379), ESTABLISHED, 101),
        row(&here(6379), &here(40_000), ESTABLISHED, 201),
        // To another host, to the same port.
        row(&here(40_001), "08080808:18EB", ESTABLISHED, 102),
        "   7: torn".to_owned(),
    ];
    fs::write(root.proc("net/tcp"), tcp.concat()).unwrap();
    let udp = [row(&here(53), none, CLOSED, 300), row(&here(40_123), none, CLOSED, 301)];
    fs::write(root.proc("net/udp"), udp.concat()).unwrap();
    let unix = "Num RefCount Protocol Flags Type St Inode Path\n\
        0: 00000002 00000000 00010000 0001 01 400 /run/x.sock\n";
    fs::write(root.proc("net/unix"), unix).unwrap();
    put_process(&root, 1, "init.scope", &[300, 400]);
    put_process(&root, 50, "web.service", &[100, 101, 102]);
    put_process(&root, 51, "web.service", &[100]);
    put_process(&root, 60, "redis.service", &[200, 201]);
    put_process(&root, 70, "named.service", &[300]);
    (directory, root)
}

fn scanned(root: &Root) -> Scanner {
    let mut scanner = Scanner::new(root).unwrap();
    scanner.scan(Now::default(), &Redactor::new([7; 32], Vec::new())).unwrap();
    scanner
}

fn lines(observation: &Observation) -> Vec<String> {
    let line = |s: &entity::Socket| {
        let process = s.process.as_deref().unwrap_or("-");
        format!("{} {process} {}", s.id, s.unit.as_deref().unwrap_or("-"))
    };
    observation.sockets.iter().map(line).collect()
}

#[test]
fn listeners_and_their_processes() {
    let (_directory, root) = machine();
    let mut sockets = Sockets::new(&root).unwrap();
    let observation = sockets.observe(&scanned(&root), Depth::Listeners).unwrap();
    let expected = [
        "tcp 0.0.0.0:80 p50 web.service",
        "tcp 127.0.0.1:6379 p60 redis.service",
        "udp 127.0.0.1:53 p70 named.service",
        "unix /run/x.sock p1 init.scope",
    ];
    assert_eq!(lines(&observation), expected);
    assert_eq!((observation.unresolved, observation.connections.len()), (0, 0));
    let first = &observation.sockets[0];
    assert_eq!((first.address.as_str(), first.port, first.uid), ("0.0.0.0", Some(80), Some(33)));
    // A socket on a passing port that is still there is no passing one.
    let again = sockets.observe(&scanned(&root), Depth::Listeners).unwrap();
    assert!(lines(&again).contains(&"udp 127.0.0.1:40123 - -".to_owned()));
    assert_eq!(again.unresolved, 1);
}

#[test]
fn connections_stay_while_both_run() {
    let (_directory, root) = machine();
    let mut sockets = Sockets::new(&root).unwrap();
    let expected = [Connection {
        from: "web.service".into(),
        to: "redis.service".into(),
        by: "tcp 127.0.0.1:6379".into(),
    }];
    let observe = |sockets: &mut Sockets| {
        sockets.observe(&scanned(&root), Depth::Connections).unwrap().connections
    };
    assert_eq!(observe(&mut sockets), expected);
    let listening = [
        row("00000000:0050", "00000000:0000", LISTENING, 100),
        row(&here(6379), "00000000:0000", LISTENING, 200),
    ];
    fs::write(root.proc("net/tcp"), listening.concat()).unwrap();
    assert_eq!(observe(&mut sockets), expected);
    fs::write(root.proc("net/tcp"), &listening[0]).unwrap();
    assert_eq!(observe(&mut sockets), []);
}

#[test]
fn clients_are_remembered_while_only_listeners_are_looked_at() {
    let (_directory, root) = machine();
    let mut sockets = Sockets::new(&root).unwrap();
    sockets.observe(&scanned(&root), Depth::Connections).unwrap();
    sockets.observe(&scanned(&root), Depth::Listeners).unwrap();
    assert!(matches!(sockets.holders.get(&101), Some(Ok(Holder { pid: 50, .. }))));
    fs::write(root.proc("net/tcp"), row(&here(6379), "00000000:0000", LISTENING, 200)).unwrap();
    sockets.observe(&scanned(&root), Depth::Connections).unwrap();
    assert!(!sockets.holders.contains_key(&101));
}

#[test]
fn the_owner_is_found_again_when_it_restarts() {
    let (_directory, root) = machine();
    let mut sockets = Sockets::new(&root).unwrap();
    sockets.observe(&scanned(&root), Depth::Listeners).unwrap();
    fs::remove_dir_all(root.proc("50")).unwrap();
    let observation = sockets.observe(&scanned(&root), Depth::Listeners).unwrap();
    assert_eq!(lines(&observation)[0], "tcp 0.0.0.0:80 p51 web.service");
}

#[test]
fn a_missing_table_says_which() {
    let (_directory, root) = machine();
    fs::remove_file(root.proc("net/tcp")).unwrap();
    let error =
        Sockets::new(&root).unwrap().observe(&scanned(&root), Depth::Listeners).unwrap_err();
    assert!(error.to_string().ends_with("/proc/net/tcp"), "{error}");
}

#[test]
fn this_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a b.sock");
    let _unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let _client = TcpStream::connect(address).unwrap();
    let root = Root::live();
    let scanner = scanned(&root);
    let mut sockets = Sockets::new(&root).unwrap();
    let observation = sockets.observe(&scanner, Depth::Connections).unwrap();
    let me = scanner.process(std::process::id()).unwrap().name();
    for id in [format!("tcp {address}"), format!("unix {}", path.display())] {
        let socket = observation.sockets.iter().find(|socket| socket.id == id).unwrap();
        assert_eq!(socket.process.as_deref(), Some(me.as_str()));
    }
}

#[test]
fn the_kernel_says_the_same_by_netlink_and_in_its_files() {
    let listeners: Vec<TcpListener> = ["127.0.0.1:0", "[::1]:0", "[::]:0"]
        .into_iter()
        .filter_map(|address| TcpListener::bind(address).ok())
        .collect();
    let clients: Vec<TcpStream> = (listeners.iter())
        .map(|listener| listener.local_addr().unwrap().port())
        .filter_map(|port| TcpStream::connect(("127.0.0.1", port)).ok())
        .collect();
    assert!(!clients.is_empty());
    let ours = |address: SocketAddr| {
        let is_at =
            |listener: &TcpListener| listener.local_addr().unwrap().port() == address.port();
        listeners.iter().any(is_at)
    };
    let seen = |by_netlink: bool, depth: Depth| {
        let mut sockets = Sockets { by_netlink, ..Sockets::new(&Root::live()).unwrap() };
        let tables = sockets.read_tcp(depth).unwrap();
        assert_eq!(sockets.by_netlink, by_netlink, "the kernel answers");
        let name = |row: &Row| format!("{} {} {} {}", row.local, row.remote, row.uid, row.inode);
        let established = tables.established.iter();
        let mut found: Vec<String> = (tables.listeners.iter())
            .filter(|listener| listener.at.is_some_and(ours))
            .map(|listener| format!("{} {:?} {}", listener.name, listener.uid, listener.inode))
            .chain(established.filter(|row| ours(row.local) || ours(row.remote)).map(name))
            .collect();
        found.sort();
        found
    };
    let listening = seen(true, Depth::Listeners);
    assert_eq!(listening.len(), listeners.len());
    assert_eq!(listening, seen(false, Depth::Listeners));
    let all = seen(true, Depth::Connections);
    assert_eq!(all.len(), listeners.len() + 2 * clients.len());
    assert_eq!(all, seen(false, Depth::Connections));
}

#[test]
fn too_many_connections_hide_nobody_who_listens() {
    let (_directory, root) = machine();
    let mut tcp = row(&here(6379), "00000000:0000", LISTENING, 200);
    for number in 0..=CONNECTIONS_MAX {
        let port = u16::try_from(number % 60_000 + 1).unwrap();
        tcp += &row(&here(6379), &here(port), ESTABLISHED, 1000 + number as u64);
    }
    fs::write(root.proc("net/tcp"), tcp).unwrap();
    let scanner = scanned(&root);
    let mut sockets = Sockets::new(&root).unwrap();
    for depth in [Depth::Connections, Depth::Listeners] {
        let seen = sockets.observe(&scanner, depth).unwrap();
        let ids: Vec<_> = seen.sockets.iter().map(|socket| socket.id.as_str()).collect();
        assert!(
            ids.contains(&"tcp 127.0.0.1:6379") && ids.contains(&"unix /run/x.sock"),
            "{ids:?}"
        );
        assert!(!seen.truncated && seen.connections_truncated, "{depth:?}");
    }
}
