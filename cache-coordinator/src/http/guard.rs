//! Who asks the dashboard's interface. Tokens come in the `Authorization` header alone: no cookie, so no request is
//! authorised that our own page did not make.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::dashboard::Refused;
use crate::access::{Access, Denied, policy::Need};

/// Refuses who may not even look; what acts asks more of the caller it finds in the extensions.
pub(super) async fn identify(
    State(access): State<Arc<Access>>,
    mut request: Request,
    next: Next,
) -> Response {
    let identified = access
        .identify(request.headers().get(header::AUTHORIZATION), None)
        .and_then(|caller| caller.require(Need::See, "the dashboard").map(|()| caller));
    match identified {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => refuse(denied),
    }
}

fn refuse(denied: Denied) -> Response {
    tracing::info!(
        reason = denied.reason,
        "the dashboard was refused: {denied}"
    );
    Refused::from(denied).into_response()
}
