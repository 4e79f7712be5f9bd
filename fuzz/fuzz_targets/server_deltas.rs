#![no_main]

libfuzzer_sys::fuzz_target!(|batches: Vec<Vec<safetytwin_fuzz::server::MadeDelta>>| {
    safetytwin_fuzz::server::server_deltas(batches)
});
