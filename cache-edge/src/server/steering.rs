//! Tells a player which edge to use: the one that the coordinator names, or else this one.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use http_rules::steering::{Candidate, Direction, Question};

use super::{edge_body::EdgeBody, problem::Problem};
use crate::resolve::directory::{Directory, NoDirectory};

/// The directory to ask, and this edge's URL for players.
#[derive(Clone)]
pub struct Steering {
    pub directory: Arc<dyn Directory>,
    pub this: Candidate,
}

impl Default for Steering {
    fn default() -> Self {
        let this = Candidate {
            name: String::new(),
            url: String::new(),
        };
        Self {
            directory: Arc::new(NoDirectory),
            this,
        }
    }
}

impl Steering {
    pub(super) async fn answer(&self, question: &Question) -> Result<Response<EdgeBody>, Problem> {
        let found = self.directory.steer(question.object().cloned()).await;
        let found = found.filter(|candidates| !candidates.is_empty());
        let candidates = found.unwrap_or_else(|| vec![self.this.clone()]);
        let mut response = Response::new(EdgeBody::empty());
        let direction = question.answer(&candidates);
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match direction {
            Some(Direction::Location(to)) => {
                let wrong =
                    |_| Problem::new(StatusCode::BAD_REQUEST, "no address can be made of it");
                let to = HeaderValue::try_from(to).map_err(wrong)?;
                headers.insert(header::LOCATION, to);
                *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            }
            Some(Direction::Manifest(text)) => {
                let json = HeaderValue::from_static("application/json");
                headers.insert(header::CONTENT_TYPE, json);
                headers.insert(header::CONTENT_LENGTH, text.len().into());
                *response.body_mut() = EdgeBody::full(text.into());
            }
            None => {}
        }
        Ok(response)
    }
}
