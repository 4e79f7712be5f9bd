//! A server that is started, stopped, killed and started again on the same port and folder.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::common::until;

pub(crate) struct Process {
    pub(crate) port: u16,
    program: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    _directory: TempDir,
}

impl Process {
    /// The program is named by a variable; the arguments follow from port and folder.
    pub(crate) async fn start(
        variable: &str,
        arguments: impl FnOnce(u16, &str) -> Vec<String>,
    ) -> Self {
        let program = std::env::var_os(variable)
            .unwrap_or_else(|| panic!("{variable} names no program; run ./test.sh sinks"));
        let directory = tempfile::tempdir().unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let arguments = arguments(port, directory.path().to_str().unwrap());
        let program = program.into();
        let mut process = Self { port, program, arguments, child: None, _directory: directory };
        process.up().await;
        process
    }

    pub(crate) async fn up(&mut self) {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let address = (Ipv4Addr::LOCALHOST, self.port);
        until("the server listens", || async { TcpStream::connect(address).await.is_ok() }).await;
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// It is there, and does nothing.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args(["-s", signal, &id]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
