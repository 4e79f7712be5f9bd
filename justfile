# Shortcuts; each is one line that also works by hand.

# What CI runs.
check:
    ./test.sh

# Formatting and lints alone.
lint:
    cargo fmt --check
    cargo clippy --workspace --all-targets -- -D warnings

# The tests that need nothing but Rust.
test:
    cargo test --workspace

# The OpenAPI document, after routes changed.
openapi:
    cargo run -q -p cli -- openapi > openapi/safetytwin.json

# Server and agent for this machine, in the foreground.
up:
    cargo run -q --release -p cli -- up
