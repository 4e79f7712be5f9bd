#![no_main]

safetytwin_fuzz::targets! {
    server:
    server_config,
    server_deltas,
    server_requests,
    server_run_log,
    server_sync,
}
