#![no_main]

safetytwin_fuzz::targets! {
    api:
    api_bridge,
    api_guest,
    api_node,
    api_wire,
}
