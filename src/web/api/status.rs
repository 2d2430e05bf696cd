//! How the plans stand.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::error::Kind;
use crate::web::Web;
use crate::web::failure::{Failure, FailureDocument};
use axum::http::StatusCode;

/// What can be restored, to when, how long it takes, when that was last proven, and what is wrong
///
/// As the daemon found it at `time`; it looks several times a minute, and at the repositories after every run and every quarter of an hour.
/// Never waits for a store.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    tag = "status",
    responses(
        (status = 200, description = "`lifeboat.status/1`", body = crate::web::documents::Status),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 503, description = "The daemon has only just started and has not looked yet", body = FailureDocument),
    )
)]
pub(super) async fn status(State(web): State<Arc<Web>>) -> Response {
    match web.board.status() {
        Some(status) => Json(&*status).into_response(),
        None => Failure::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable.word(), "the daemon has not looked at all plans yet")
            .hint("ask again in a few seconds")
            .retry_after(2)
            .into_response(),
    }
}
