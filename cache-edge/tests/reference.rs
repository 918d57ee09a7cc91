//! `docs/configuration.md` matches the options. `CHUNKCACHE_WRITE_REFERENCE=1` writes it.
#![allow(clippy::unwrap_used)]

use cache_edge::options::Options;
use service_kit::config::reference_page;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

#[test]
fn the_configuration_page_is_up_to_date() {
    let page = std::fs::read_to_string(PAGE).unwrap_or_default();
    let written = reference_page::<Options>(&page, "cache-edge serve");
    hold(PAGE, &written);
}

/// Compares, or writes if requested.
fn hold(path: &str, written: &str) {
    if std::env::var_os("CHUNKCACHE_WRITE_REFERENCE").is_some() {
        std::fs::write(path, written).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == written, "{path} is not up to date: just reference");
}
