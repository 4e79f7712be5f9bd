#![no_main]

safetytwin_fuzz::targets! {
    store:
    store_records,
    store_texts,
}
