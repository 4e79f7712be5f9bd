#![no_main]

libfuzzer_sys::fuzz_target!(|made: safetytwin_fuzz::host::MadeSigns| {
    safetytwin_fuzz::host::host_workload(made)
});
