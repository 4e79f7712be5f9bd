//! How the programs are linked that ship: what the compiler made alike for several types is kept
//! once. Nothing compares the addresses of functions, which would tell.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_small = var("CARGO_FEATURE_SMALL").is_ok();
    // Where rustc brings LLD along; GNU's linker has no such option.
    let has_lld = var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    if is_small && has_lld {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
