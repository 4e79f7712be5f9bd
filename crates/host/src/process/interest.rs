//! Which open files say what a process works on: databases, models, graphics devices. Pure.

/// What an open file says about the process that has it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Data,
    GraphicsDevice,
}

const DATABASES: [&str; 8] =
    [".db", ".db3", ".sqlite", ".sqlite3", ".sqlitedb", ".mdb", ".rdb", ".duckdb"];

const MODELS: [&str; 7] = [".gguf", ".ggml", ".safetensors", ".pt", ".pth", ".onnx", ".tflite"];

/// Beginnings of `.bin` files that hold a model.
const MODEL_BINARIES: [&str; 4] = ["pytorch_model", "ggml", "model", "consolidated"];

/// Judges the target of a link in `/proc/PID/fd`.
pub(crate) fn interest(target: &[u8]) -> Option<Interest> {
    if !target.starts_with(b"/") {
        return None;
    }
    let path = std::str::from_utf8(target).ok()?;
    if let Some(device) = path.strip_prefix("/dev/") {
        return is_graphics_device(device).then_some(Interest::GraphicsDevice);
    }
    let name = crate::text::base_name(path).to_ascii_lowercase();
    let data = DATABASES.iter().any(|suffix| name.ends_with(suffix)) || is_model_name(&name);
    data.then_some(Interest::Data)
}

/// Whether a path is named as a language or other machine-learned model.
pub(crate) fn is_model(path: &str) -> bool {
    is_model_name(&crate::text::base_name(path).to_ascii_lowercase())
        || crate::text::base_name(path).starts_with("sha256-") && path.contains("/blobs/")
}

fn is_model_name(name: &str) -> bool {
    MODELS.iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
        || name.ends_with(".bin") && MODEL_BINARIES.iter().any(|start| name.starts_with(start))
}

fn is_graphics_device(device: &str) -> bool {
    let numbered = |prefix: &str| {
        device
            .strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    numbered("nvidia") || device == "kfd" || numbered("dri/renderD")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_interest() {
        for path in
            ["/var/lib/app/state.db", "/srv/x.SQLite3", "/models/a-7b.Q4.gguf", "/m/model-1.bin"]
        {
            assert_eq!(interest(path.as_bytes()), Some(Interest::Data), "{path}");
        }
        for path in ["/dev/nvidia0", "/dev/kfd", "/dev/dri/renderD128"] {
            assert_eq!(interest(path.as_bytes()), Some(Interest::GraphicsDevice), "{path}");
        }
        for path in [
            "socket:[123]",
            "/dev/nvidiactl",
            "/dev/null",
            "/var/log/x.log",
            "/a/.gguf",
            "relative.db",
            "/firmware.bin",
            "/usr/lib/x.so",
            "/a/chart.html",
            "/dev/dri/renderD",
        ] {
            assert_eq!(interest(path.as_bytes()), None, "{path}");
        }
        assert_eq!(interest(b"/\xff.db"), None);
        assert!(is_model("/root/.ollama/models/blobs/sha256-00aa"));
        assert!(!is_model("/var/lib/blobs/other"));
    }
}
