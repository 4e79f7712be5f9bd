#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| safetytwin_fuzz::server::server_sync(text));
