# Recipes for people; continuous integration runs the same through tests/run.

# what there is
default:
    @just --list

# format everything
fmt:
    cargo fmt --all

# format check and lints, warnings denied
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# documentation, warnings denied
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

# docs/configuration.md, docs/cli.md and docs/api.md from the code
reference:
    CHUNKCACHE_WRITE_REFERENCE=1 cargo test --locked -p cache-coordinator -p cache-edge --test reference -- --test-threads=1

# unit and contract tests
test *filter:
    cargo test --locked --workspace --exclude chunkcache-tests {{ filter }}

# whole system, real processes; further words filter the tests
black-box *filter:
    tests/run black-box {{ filter }}

# hits and misses side by side with other servers
bench *arguments:
    tests/bench/run {{ arguments }}

# Instructions of the hit path and the scheduler against their baseline.
guard *arguments:
    tests/bench/guard {{ arguments }}

# a cluster on this machine with a real video
quickstart *arguments:
    deploy/quickstart {{ arguments }}

# units, alert rules, database roles, chart and pages, in seconds
deployment:
    tests/deploy/files

# the images and deploy/compose.yaml, run for real
containers *arguments:
    tests/deploy/containers {{ arguments }}

# everything continuous integration runs
ci:
    .ci/run
