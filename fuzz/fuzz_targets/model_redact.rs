#![no_main]

libfuzzer_sys::fuzz_target!(|confession: safetytwin_fuzz::model::Confession| {
    safetytwin_fuzz::model::model_redact(confession)
});
