//! Options that both the coordinator's connection and a command have: `--endpoint` and `--ca` of a
//! source, `--key` of a purge.
//!
//! After `purge`, the first `--key` is the object's, unless another option selects what is purged;
//! its unambiguous name is `--object-key`.
//!
//! After `source add` and `source set` they are the source's if that makes sense, otherwise the
//! coordinator's, as everywhere. If given twice there, the first is the source's. The unambiguous
//! names are `--s3-endpoint` and `--origin-ca`.

use std::ffi::OsString;

/// The arguments with the source's options under their unambiguous names.
pub fn resolve(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<String> = arguments
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    if let Some(at) = purged_key(&words) {
        arguments[at] = words[at].replacen("--key", "--object-key", 1).into();
        return arguments;
    }
    let noun = words.iter().position(|word| word == "source");
    let verb = noun.and_then(|noun| {
        let mut rest = words.iter().skip(noun + 1);
        let found = rest.position(|word| word == "add" || word == "set")?;
        Some(noun + 1 + found)
    });
    let Some(verb) = verb else { return arguments };
    let is_bucket = words
        .iter()
        .skip(verb)
        .any(|word| word.starts_with("s3://"));
    let given = |name: &str| -> Vec<usize> {
        let with_value = format!("{name}=");
        let is_it = |word: &String| word == name || word.starts_with(&with_value);
        (0..words.len()).filter(|&at| is_it(&words[at])).collect()
    };
    let (endpoints, authorities) = (given("--endpoint"), given("--ca"));
    let behind = |places: &[usize]| -> Vec<usize> {
        places.iter().copied().filter(|&at| at > verb).collect()
    };
    let is_named = !given("--s3-endpoint").is_empty();
    let of_source = match behind(&endpoints).as_slice() {
        _ if is_named => None,
        [only] if is_bucket => Some(*only),
        [first, _, ..] => Some(*first),
        _ => None,
    };
    // Without a CA of its own, a coordinator with TLS could not be reached.
    let has_tls = endpoints.iter().any(|&at| {
        let value = words[at].strip_prefix("--endpoint=");
        value
            .or_else(|| words.get(at + 1).map(String::as_str))
            .is_some_and(|url| url.starts_with("https://") && Some(at) != of_source)
    });
    let authority_of_source = match behind(&authorities).as_slice() {
        [only] if !has_tls || authorities.len() > 1 => Some(*only),
        [first, _, ..] => Some(*first),
        _ => None,
    };
    for (at, name, unambiguous) in [
        (of_source, "--endpoint", "--s3-endpoint"),
        (authority_of_source, "--ca", "--origin-ca"),
    ] {
        if let Some(at) = at {
            arguments[at] = words[at].replacen(name, unambiguous, 1).into();
        }
    }
    arguments
}

/// The index of the `--key` with which a purge names its object.
fn purged_key(words: &[String]) -> Option<usize> {
    let noun = words.iter().position(|word| word == "purge")?;
    let others = ["--object-key", "--prefix", "--glob", "--tag", "--source"];
    let is = |word: &str, name: &str| {
        word.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    let rest = &words[noun..];
    if rest
        .iter()
        .any(|word| others.iter().any(|name| is(word, name)))
    {
        return None;
    }
    let found = rest.iter().position(|word| is(word, "--key"))?;
    Some(noun + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let resolved = resolve(line.split(' ').map(OsString::from));
        let words: Vec<_> = resolved.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn an_endpoint_is_the_buckets_or_the_coordinators() {
        check(
            "c source add films s3://b --endpoint http://s3",
            "c source add films s3://b --s3-endpoint http://s3",
        );
        check(
            "c --endpoint http://c source add films s3://b --endpoint=http://s3",
            "c --endpoint http://c source add films s3://b --s3-endpoint=http://s3",
        );
        check(
            "c source set films --endpoint http://s3 --endpoint=http://c",
            "c source set films --s3-endpoint http://s3 --endpoint=http://c",
        );
        for coordinators in [
            "c source add films http://o --endpoint http://c",
            "c source list --endpoint http://c",
            "c entry show films/a --endpoint http://c",
        ] {
            check(coordinators, coordinators);
        }
    }

    #[test]
    fn the_first_key_of_a_purge_is_its_objects() {
        check(
            "c --cert c.pem --key k.pem purge --key films/a --soft",
            "c --cert c.pem --key k.pem purge --object-key films/a --soft",
        );
        check(
            "c purge --key=films/a --cert c.pem --key k.pem",
            "c purge --object-key=films/a --cert c.pem --key k.pem",
        );
        check(
            "c purge --tag t --cert c.pem --key k.pem",
            "c purge --tag t --cert c.pem --key k.pem",
        );
    }

    #[test]
    fn an_authority_is_the_sources_unless_the_coordinator_needs_it() {
        check(
            "c source add films https://o --ca ca.pem --endpoint=http://c",
            "c source add films https://o --origin-ca ca.pem --endpoint=http://c",
        );
        check(
            "c source add films https://o --ca=o.pem --endpoint=https://c --ca c.pem",
            "c source add films https://o --origin-ca=o.pem --endpoint=https://c --ca c.pem",
        );
        check(
            "c --ca c.pem --endpoint https://c source add films https://o --ca o.pem",
            "c --ca c.pem --endpoint https://c source add films https://o --origin-ca o.pem",
        );
        let coordinators = "c source add films https://o --endpoint=https://c --ca c.pem";
        check(coordinators, coordinators);
    }
}
