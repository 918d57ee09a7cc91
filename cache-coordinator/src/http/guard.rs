//! Identifies callers of the dashboard's API. Tokens come in the `Authorization` header alone:
//! there is no cookie, so only our own page's requests are authorised.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::dashboard::{RefusalResponse, problem};
use crate::access::{Access, Caller, Denied, RevocableBody, policy::Need};

/// Refuses callers without read permission; actions check the caller in the extensions again.
pub(super) async fn identify(
    State((access, is_loopback)): State<(Arc<Access>, bool)>,
    mut request: Request,
    next: Next,
) -> Response {
    let caller = match caller_of(&access, is_loopback, &request, (Need::See, "the dashboard")) {
        Ok(caller) => caller,
        Err(refused) => return refused,
    };
    let revoked = access.revoked(request.headers().get(header::AUTHORIZATION));
    request.extensions_mut().insert(caller);
    let response = next.run(request).await;
    match revoked {
        None => response,
        Some(revoked) => {
            response.map(|body| Body::new(RevocableBody::new(body, revoked, HeaderMap::new())))
        }
    }
}

/// The caller, if it may do `what`, which requires `need`; otherwise the refusal.
#[allow(clippy::result_large_err)]
pub(super) fn caller_of(
    access: &Access,
    is_loopback: bool,
    request: &Request,
    (need, what): (Need, &str),
) -> Result<Caller, Response> {
    // Without tokens, the caller must be on this machine.
    if is_loopback && access.tokens().is_none() && !is_of_this_machine(request) {
        return Err(problem(
            StatusCode::MISDIRECTED_REQUEST,
            "without tokens, this is answered only where it is asked for by an address, localhost \
             or a name without a dot",
        ));
    }
    access
        .identify(request.headers().get(header::AUTHORIZATION), None)
        .and_then(|caller| caller.require(need, what).map(|()| caller))
        .map_err(refuse)
}

fn refuse(denied: Denied) -> Response {
    tracing::info!(
        reason = denied.reason,
        "the dashboard was refused: {denied}"
    );
    RefusalResponse::from(denied).into_response()
}

/// Whether no other site can have the request's host name. A page of another site, in a browser on
/// this machine, also connects from this machine. Once its name points to 127.0.0.1 (DNS
/// rebinding), its requests are same-origin to the browser and can contain any header, but the host
/// name remains that of the other site.
fn is_of_this_machine(request: &Request) -> bool {
    let named = request.uri().authority().cloned().or_else(|| {
        let host = request.headers().get(header::HOST)?.to_str().ok()?;
        host.parse::<Authority>().ok()
    });
    named.is_some_and(|authority| is_local_name(authority.host()))
}

fn is_local_name(host: &str) -> bool {
    let inside = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    inside.is_some_and(|it| it.parse::<Ipv6Addr>().is_ok())
        || host.parse::<IpAddr>().is_ok()
        || host.ends_with(".localhost")
        || (!host.is_empty() && !host.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::is_local_name;

    #[test]
    fn names_that_no_other_site_can_have() {
        for name in [
            "127.0.0.1",
            "[::1]",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "coordinator-1",
        ] {
            assert!(is_local_name(name), "{name}");
        }
        for name in [
            "rebound.example",
            "localhost.example",
            "127.0.0.1.example",
            "127.0.0.1.nip.example.",
            "",
            "[::1].example",
        ] {
            assert!(!is_local_name(name), "{name}");
        }
    }
}
