#![no_main]

safetytwin_fuzz::targets! {
    agent:
    agent_config,
    agent_spool,
}
