#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| safetytwin_fuzz::agent::agent_config(text));
