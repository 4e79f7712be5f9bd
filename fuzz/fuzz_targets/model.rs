#![no_main]

safetytwin_fuzz::targets! {
    model:
    model_names,
    model_patch,
    model_plan,
    model_redact,
    model_values,
}
