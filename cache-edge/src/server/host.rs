//! The `Host` of a request.

use http::{HeaderValue, StatusCode, Version, header, request::Parts};

use super::{connection_cache::ConnectionCache, problem::Problem};

/// RFC 9112, 3.2: exactly one valid Host in HTTP/1.1; in HTTP/2 `:authority` is enough.
pub(super) fn check<R>(memory: &ConnectionCache<R>, request: &Parts) -> Result<(), Problem> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let valid = |host: &HeaderValue| {
        if memory.is_known_host(host) {
            return true;
        }
        let bytes = host.as_bytes();
        let valid = bytes.is_empty()
            || (!bytes.contains(&b'@')
                && http::uri::Authority::try_from(bytes).is_ok_and(|host| has_valid_port(&host)));
        if valid {
            memory.remember_host(host);
        }
        valid
    };
    let ok = match (hosts.next(), hosts.next()) {
        (Some(host), None) => valid(host),
        (None, _) => match request.version {
            Version::HTTP_2 => request.uri.authority().is_some(),
            version => version < Version::HTTP_11,
        },
        (Some(_), Some(_)) => false,
    };
    if ok {
        Ok(())
    } else {
        Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "the request needs exactly one valid Host",
        ))
    }
}

/// RFC 3986, 3.2.3: no port, an empty one, or digits.
fn has_valid_port(authority: &http::uri::Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host());
    match rest.and_then(|rest| rest.strip_prefix(':')) {
        Some(port) => port.is_empty() || authority.port_u16().is_some(),
        None => rest == Some(""),
    }
}
