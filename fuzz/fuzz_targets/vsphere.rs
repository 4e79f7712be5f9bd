#![no_main]

safetytwin_fuzz::targets! {
    vsphere:
    vsphere_soap,
}
