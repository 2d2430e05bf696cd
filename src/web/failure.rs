//! Errors as answers: `{"error": {"kind", "message", "causes", "hint"}}` and the HTTP status that fits.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::daemon::journal::ErrorRecord;
use crate::error::{Error, Kind};

/// Every answer that is not 2xx.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Failure")]
pub(super) struct FailureDocument {
    error: FailureBody,
}

#[derive(Debug, Serialize, ToSchema)]
struct FailureBody {
    /// A stable word: those of the command line, and `unauthorized`, `forbidden`, `method-not-allowed`, `too-large`, `too-many`, `timeout`.
    kind: String,
    /// What was being done to what.
    message: String,
    /// Outermost first.
    causes: Vec<String>,
    /// What to do.
    hint: Option<String>,
}

/// A failed request.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    body: FailureBody,
    /// Told to the client as `Retry-After`, seconds.
    retry_after: Option<u32>,
}

impl Failure {
    pub fn new(status: StatusCode, kind: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: FailureBody { kind: kind.to_owned(), message: message.into(), causes: Vec::new(), hint: None },
            retry_after: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.body.hint = Some(hint.into());
        self
    }

    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// What was asked for makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::Usage.word(), message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Kind::NotFound.word(), message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            Kind::Usage => StatusCode::BAD_REQUEST,
            Kind::NotFound | Kind::NoRecoveryPoint => StatusCode::NOT_FOUND,
            Kind::Busy | Kind::AlreadyExists => StatusCode::CONFLICT,
            Kind::Unavailable | Kind::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
            Kind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            // Nothing that the client could do otherwise.
            Kind::Failed
            | Kind::Incomplete
            | Kind::SplitBrain
            | Kind::NoRepository
            | Kind::WrongKey
            | Kind::Damaged
            | Kind::Differs
            | Kind::ObjectiveMissed
            | Kind::Bug => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let ErrorRecord { kind, message, causes, hint } = ErrorRecord::from(&error);
        Self { status, body: FailureBody { kind, message, causes, hint }, retry_after: None }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(FailureDocument { error: self.body })).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"lifeboat\""));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
