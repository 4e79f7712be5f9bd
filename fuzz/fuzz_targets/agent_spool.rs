#![no_main]

libfuzzer_sys::fuzz_target!(|journal: safetytwin_fuzz::agent::Journal| {
    safetytwin_fuzz::agent::agent_spool(journal)
});
