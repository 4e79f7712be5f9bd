#![no_main]

libfuzzer_sys::fuzz_target!(|steps: safetytwin_fuzz::model::Steps| {
    safetytwin_fuzz::model::model_patch(steps)
});
