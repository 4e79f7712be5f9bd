#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| safetytwin_fuzz::model::model_names(text));
