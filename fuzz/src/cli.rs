//! The command line's reader of event streams, which is private to a program.

#[allow(dead_code, reason = "the events' fields are compared, not read")]
#[path = "../../crates/cli/src/sse.rs"]
mod sse;

/// The events are the same however the network divides the bytes: the first byte says how.
pub fn cli_sse(data: &[u8]) {
    let Some((&step, stream)) = data.split_first() else { return };
    let whole = sse::Parser::default().feed(stream);
    let mut parser = sse::Parser::default();
    let pieces: Result<Vec<_>, _> =
        stream.chunks(usize::from(step).max(1)).map(|piece| parser.feed(piece)).collect();
    assert_eq!(whole, pieces.map(|pieces| pieces.concat()));
}
