# `just` lists the recipes; CI runs .ci/run, which does all of it.

default:
    @just --list

# Format, lint and test, as before every commit.
check:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
    cargo test --locked

# The whole gate, as CI runs it.
ci:
    .ci/run

# What takes too long for every commit.
long:
    .ci/long

# Watch a recorded incident being caught.
demo:
    cargo run --release -- demo

# Every benchmark.
bench:
    cargo bench

# Measure the detection on simulated logs: the table and the picture of docs/departure.md.
detection simload dir="target/detection" python="python3":
    scripts/detection.sh {{simload}} {{dir}} {{python}}

# Build the book into target/book.
book mdbook="mdbook":
    scripts/book.sh {{mdbook}}

# Build and check what is shipped: binary, Debian package, image, SBOM, crates.
package *pieces:
    scripts/package.sh {{pieces}}

# Draw the demo for the README.
picture:
    cargo build --release
    scripts/demo_svg.py
