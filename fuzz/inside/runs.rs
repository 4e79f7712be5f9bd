//! What the fuzzer needs of the runs' private parts. Exists under `--cfg fuzzing` alone.

use super::RunId;
use super::chunk::Records;
use super::log::{self, FORMAT, Found, Header, Marks};
use api::run::{RunCause, RunKind};
use model::Time;
use std::io::Cursor;
use std::path::Path;

/// A log made of the input: a line that begins with `s` gets its checksum, one with `r` stays as
/// it is, others lose their line end. Unless the input begins with `-`, a header is before them.
fn made(data: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    if data.first() != Some(&b'-') {
        let header = Header {
            format: FORMAT,
            id: RunId::new(7),
            kind: RunKind::ImageBuild,
            subject: "image:x".to_owned(),
            cause: RunCause::Local,
            created_at: Time(1),
        };
        log::seal(&serde_json::to_vec(&header).expect("plain data"), &mut file);
    }
    for line in data.split(|&byte| byte == b'\n') {
        match line.split_first() {
            Some((b's', json)) => log::seal(json, &mut file),
            Some((b'r', raw)) => {
                file.extend_from_slice(raw);
                file.push(b'\n');
            }
            _ => file.extend_from_slice(line),
        }
    }
    file
}

/// Reads a log; what is believed is believed again when the rest is cut off, and is passed on
/// record by record.
///
/// # Panics
/// When it is not.
pub fn log(data: &[u8], path: &Path) {
    let bytes = made(data);
    let Ok(found) = log::inspect(&mut Cursor::new(&bytes)) else { return };
    let believed = usize::try_from(found.bytes).expect("no longer than the input");
    let again = log::inspect(&mut Cursor::new(&bytes[..believed])).expect("it was a log before");
    assert_eq!(again, found);
    std::fs::write(path, &bytes).expect("scratch can be written");
    pass_on(&found, path);
}

fn pass_on(found: &Found, path: &Path) {
    let mut next = 0;
    let mut position = log::locate(path, 0, &Marks::default()).expect("it was just written");
    while let Ok(Some(chunk)) = log::page(path, next, position, found.records) {
        let records = Records::of(chunk);
        let passed = records.json().count() as u64;
        assert!(passed > 0 && records.next() == next + passed);
        assert!(records.frames().ends_with(b"\n\n"));
        (next, position) = (records.next(), records.end_position());
    }
    assert!(next <= found.records);
    // An end is believed without what is before it; without one, each record was read.
    if found.end.is_none() {
        assert_eq!(next, found.records);
    }
}
