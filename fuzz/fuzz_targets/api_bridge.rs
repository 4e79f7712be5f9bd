#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| safetytwin_fuzz::api::api_bridge(body));
