#![no_main]

safetytwin_fuzz::targets! {
    cli:
    cli_sse,
}
