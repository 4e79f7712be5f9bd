#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| safetytwin_fuzz::vsphere::vsphere_soap(bytes));
