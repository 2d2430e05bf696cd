//! How the plans stand.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::daemon::status::{Problem, Status};
use crate::error::Kind;
use crate::web::Web;
use crate::web::failure::{Failure, FailureDocument};

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
    // What is wrong with the daemon itself is known without a look, and may be what keeps it from looking.
    let troubles = web.control.problems();
    let Some(status) = web.board.status() else {
        let troubles: Vec<String> = troubles.into_iter().map(|trouble| format!(": {}", trouble.message)).collect();
        let message = format!("the daemon has not looked at all plans yet{}", troubles.concat());
        return Failure::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable.word(), message)
            .hint("ask again in a few seconds")
            .retry_after(2)
            .into_response();
    };
    let mut status = Status::clone(&status);
    for trouble in troubles {
        if status.problems.iter().all(|known| known.kind != trouble.kind) {
            status.problems.push(Problem { kind: trouble.kind, job: None, message: trouble.message });
        }
    }
    Json(status).into_response()
}
