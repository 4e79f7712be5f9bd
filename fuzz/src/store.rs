//! Records of the store, which damage, or another program, may have written.

/// The first byte says what the rest is read as.
pub fn store_records(data: &[u8]) {
    if let Some((&kind, bytes)) = data.split_first() {
        ::store::fuzzing::record(kind, bytes);
    }
}

/// Postings, and texts with a shorter form.
pub fn store_texts(data: &[u8]) {
    ::store::fuzzing::postings(data);
    if let Ok(text) = std::str::from_utf8(data) {
        ::store::fuzzing::texts(text);
    }
}
