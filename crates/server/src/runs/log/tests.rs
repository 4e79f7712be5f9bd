use super::*;
use crate::runs::{Records, RunId};
use api::run::{RunState, RunStream};
use proptest::prelude::*;
use std::io::Cursor;

fn header() -> Header {
    Header {
        format: FORMAT,
        id: RunId::new(7),
        kind: RunKind::ImageBuild,
        subject: "image:debian".into(),
        cause: RunCause::Local,
        created_at: Time(1),
    }
}

fn line(offset: u64) -> RunRecord {
    let event = RunEvent::Line { stream: RunStream::Stdout, text: format!("line {offset}") };
    RunRecord { offset, at: Time(2), event }
}

fn end(offset: u64) -> RunRecord {
    let event =
        RunEvent::End { state: RunState::Failed, exit_code: 1, message: None, started_at: None };
    RunRecord { offset, at: Time(3), event }
}

/// The file, and where each of its lines ends.
fn file(records: &[RunRecord]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    seal(&serde_json::to_vec(&header()).unwrap(), &mut bytes);
    let mut ends = vec![bytes.len()];
    for record in records {
        seal(&serde_json::to_vec(record).unwrap(), &mut bytes);
        ends.push(bytes.len());
    }
    (bytes, ends)
}

fn look(bytes: &[u8]) -> Result<Found, Unusable> {
    inspect(&mut Cursor::new(bytes.to_vec()))
}

/// What is found is a header, so many records, whether they have an end, and so many bytes.
fn check(bytes: &[u8], records: u64, ended: bool, believed: usize) {
    let found = look(bytes).unwrap();
    assert_eq!(found.header, header());
    assert_eq!(
        (found.records, found.end.is_some(), found.bytes),
        (records, ended, believed as u64)
    );
}

#[test]
fn a_torn_tail_is_cut_wherever_it_is_torn() {
    let (bytes, ends) = file(&[line(0), line(1), end(2)]);
    for length in ends[0]..=bytes.len() {
        let whole = ends.iter().rposition(|&end| end <= length).unwrap();
        check(&bytes[..length], whole as u64, whole == 3, ends[whole]);
    }
    for length in 0..ends[0] {
        assert!(matches!(look(&bytes[..length]), Err(Unusable::Unbegun)), "{length}");
    }
}

#[test]
fn what_was_changed_is_not_believed() {
    let (bytes, ends) = file(&[line(0), line(1), line(2)]);
    for at in ends[1]..ends[2] {
        for bit in [1, 0x20] {
            let mut changed = bytes.clone();
            changed[at] ^= bit;
            check(&changed, 1, false, ends[1]);
        }
    }
    let mut changed = bytes.clone();
    changed[20] ^= 1;
    assert!(matches!(look(&changed), Err(Unusable::Damaged(_))));
}

#[test]
fn records_out_of_their_place_are_not_believed() {
    let (bytes, ends) = file(&[line(0), line(2), end(3)]);
    // Whoever wrote the end knew how many there were; it is read record by record otherwise.
    check(&bytes[..ends[2]], 1, false, ends[1]);
    let (bytes, ends) = file(&[line(0), end(1), line(2)]);
    check(&bytes, 2, true, ends[2]);
}

#[test]
fn other_files_are_no_logs() {
    for (bytes, begun) in [(vec![0; 100], false), (vec![b'x'; 70_000], true), (vec![b'\n'], true)] {
        let damaged = matches!(look(&bytes), Err(Unusable::Damaged(_)));
        assert_eq!(damaged, begun, "{}", bytes.len());
    }
    let mut newer = Vec::new();
    seal(&serde_json::to_vec(&Header { format: 2, ..header() }).unwrap(), &mut newer);
    assert!(matches!(look(&newer), Err(Unusable::Damaged("it is of a newer version"))));
}

#[test]
fn any_record_is_found_with_and_without_marks() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let records: Vec<RunRecord> = (0..5000).map(line).collect();
    let (bytes, ends) = file(&records);
    std::fs::write(&path, &bytes).unwrap();
    let mut marks = Marks::default();
    for record in (0..5000_usize).step_by(100) {
        marks.add(record as u64, ends[record] as u64);
    }
    for offset in [0, 1, 99, 100, 101, 2500, 4999] {
        let position = ends[offset] as u64;
        let offset = offset as u64;
        assert_eq!(locate(&path, offset, &Marks::default()).unwrap(), position);
        assert_eq!(locate(&path, offset, &marks).unwrap(), position);
        let chunk = page(&path, offset, position, 5000).unwrap().unwrap();
        let first = Records::of(chunk).json().next().unwrap();
        assert_eq!(serde_json::from_slice::<RunRecord>(&first).unwrap(), line(offset));
    }
    assert!(page(&path, 3, ends[3] as u64 + 1, 5000).unwrap().is_none(), "no place of a record");
}

proptest! {
    #[test]
    fn nothing_panics_and_what_is_found_is_found_again(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        keep in 0..600_usize,
    ) {
        let (mut file, _) = file(&[line(0), line(1), end(2)]);
        file.truncate(keep);
        file.extend(bytes);
        if let Ok(found) = look(&file) {
            let cut = &file[..usize::try_from(found.bytes).unwrap()];
            prop_assert_eq!(look(cut).unwrap(), found);
        }
    }
}
