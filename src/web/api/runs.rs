//! Runs: the journal's, and asking the daemon for one or for an end.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::daemon::history;
use crate::daemon::journal::{self, Filter, Job};
use crate::error::{Error, Kind};
use crate::id::{Name, RunId};
use crate::web::Web;
use crate::web::api::ask;
use crate::web::documents;
use crate::web::failure::{Failure, FailureDocument};

/// Runs in one answer.
const DEFAULT_LIMIT: u32 = 20;
const MOST: u32 = 1000;

/// Who asks, in the journal.
const WHO: &str = "api token";

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RunsQuery {
    /// Only of this plan.
    plan: Option<String>,
    /// Only of this job.
    #[param(inline)]
    job: Option<documents::Job>,
    /// Only in this state.
    #[param(inline)]
    state: Option<documents::State>,
    /// At most so many, newest first; 20 unless said otherwise.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

impl RunsQuery {
    fn filter(self) -> Result<Filter, Failure> {
        let limit = self.limit.unwrap_or(DEFAULT_LIMIT);
        if limit == 0 || limit > MOST {
            return Err(Failure::bad_request(format!("list runs: limit must be between 1 and {MOST}")));
        }
        let plan = self.plan.map(Name::new).transpose()?;
        let job = self.job.and_then(|job| Job::from_word(job.word()));
        let state = self.state.and_then(|state| journal::State::from_word(state.word()));
        Ok(Filter { plan, job, state, limit, ..Filter::default() })
    }
}

/// A query that cannot be understood, told in one clean line.
pub(super) fn bad_query(rejection: &QueryRejection) -> Failure {
    let known = rejection.body_text();
    let why = known.rsplit(": ").next().unwrap_or_default().chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    Failure::bad_request(format!("read the query: {why}")).hint("/openapi.json says what this path takes")
}

/// What was done, newest first
#[utoipa::path(
    get,
    path = "/api/v1/runs",
    tag = "runs",
    params(RunsQuery),
    responses(
        (status = 200, description = "`lifeboat.runs/1`", body = documents::Runs),
        (status = 400, description = "The query cannot be understood", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
    )
)]
pub(super) async fn list(State(web): State<Arc<Web>>, query: Result<Query<RunsQuery>, QueryRejection>) -> Result<Json<Value>, Failure> {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection))?;
    let filter = query.filter()?;
    ask(&web, move |web| Ok(history::runs_document(&history::as_they_are(&web.journal, web.journal.runs(&filter)?)?))).await.map(Json)
}

fn run_id(id: Result<Path<String>, PathRejection>) -> Result<RunId, Failure> {
    let Ok(Path(id)) = id else { return Err(Failure::bad_request("read the run's id: it is no text")) };
    id.to_ascii_lowercase().parse().map_err(|_| Failure::bad_request("read the run's id: it is none").hint("/api/v1/runs lists them"))
}

/// One run: its phases, bytes, warnings, error and earlier attempts
#[utoipa::path(
    get,
    path = "/api/v1/runs/{id}",
    tag = "runs",
    params(("id" = String, Path, description = "A run's id", min_length = 26, max_length = 26)),
    responses(
        (status = 200, description = "`lifeboat.run/1`", body = documents::Run),
        (status = 202, description = "`lifeboat.run-request/1`: it was asked for and has not begun", body = documents::RunRequest),
        (status = 400, description = "The id cannot be read", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 404, description = "There is no such run", body = FailureDocument),
    )
)]
pub(super) async fn one(State(web): State<Arc<Web>>, id: Result<Path<String>, PathRejection>) -> Result<Response, Failure> {
    let id = run_id(id)?;
    let document = ask(&web, move |web| {
        let run = match web.journal.run(id) {
            Err(error) if error.kind() == Kind::NotFound => match web.control.requested_run(id)? {
                Some((run, waits_for)) => {
                    return Ok((StatusCode::ACCEPTED, request_document(id, &run.plan, run.job, waits_for.as_deref())));
                }
                // It may have begun in between.
                None => web.journal.run(id)?,
            },
            known => known?,
        };
        let run = history::as_they_are(&web.journal, vec![run])?.remove(0);
        let mut document = history::run_document(&run, &web.journal.attempts(run.id)?);
        // What the journal gets only at the end.
        let going = || web.control.running().into_iter().find(|running| running.id == id);
        if let Some(running) = (run.state == journal::State::Running).then(going).flatten() {
            document["now"] = json!({ "phase": running.phase, "bytes": running.bytes, "stopping": running.stopping });
        }
        Ok((StatusCode::OK, document))
    });
    let (status, document) = document.await?;
    Ok((status, Json(document)).into_response())
}

/// A run that was asked for. `waits_for`: `None`: it has started.
fn request_document(id: RunId, plan: &Name, job: Job, waits_for: Option<&str>) -> Value {
    json!({ "schema": "lifeboat.run-request/1", "id": id, "plan": plan, "job": job.word(), "waits_for": waits_for })
}

/// What to start.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartRequest {
    /// A plan's name.
    plan: String,
    /// `restore` is refused: it asks its operator things and has a target.
    job: documents::Job,
}

/// Start a run now
///
/// It goes through the same checks as a scheduled one: one that runs or waits already is not doubled.
#[utoipa::path(
    post,
    path = "/api/v1/runs",
    tag = "runs",
    request_body = StartRequest,
    responses(
        (status = 202, description = "`lifeboat.run-request/1`: it has started, or waits for what `waits_for` says", body = documents::RunRequest),
        (status = 400, description = "The request cannot be understood, or there is no such plan", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 409, description = "The same job of the plan goes on or waits already, or the daemon is stopping", body = FailureDocument),
        (status = 413, description = "More than 64 KiB", body = FailureDocument),
        (status = 415, description = "Not application/json", body = FailureDocument),
    )
)]
pub(super) async fn start(
    State(web): State<Arc<Web>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let StartRequest { plan, job } = json_body(&headers, body)?;
    let plan = Name::new(plan)?;
    let job = Job::from_word(job.word()).ok_or_else(|| Failure::bad_request("start a run: there is no such job"))?;
    let requested = ask(&web, move |web| web.control.request_run(&plan, job, WHO).map(|requested| (plan, requested)));
    let (plan, requested) = requested.await?;
    tracing::info!(run = %requested.id, plan = %plan, job = job.word(), "the API was asked for a run");
    let document = request_document(requested.id, &plan, job, requested.waits_for.as_deref());
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, format!("/api/v1/runs/{}", requested.id))], Json(document)).into_response())
}

/// A document that a client sent. What it says wrong is told by position, not repeated.
fn json_body<T: serde::de::DeserializeOwned>(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<T, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::Usage.word(), "read the body: it must be application/json"));
    }
    let body = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                format!("read the body: more than {} bytes", crate::web::MAX_BODY_BYTES),
            )
        } else {
            Failure::bad_request("read the body: it did not come whole")
        }
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "it is not what this path takes",
            _ => "it is no JSON",
        };
        Failure::bad_request(format!("read the body: {what} (line {}, column {})", error.line(), error.column()))
            .hint("for example {\"plan\": \"crm\", \"job\": \"backup\"}")
    })
}

/// Ask a run of this daemon to stop, or take back one that waits
///
/// It ends as `interrupted` at its next check.
#[utoipa::path(
    post,
    path = "/api/v1/runs/{id}/cancel",
    tag = "runs",
    params(("id" = String, Path, description = "A run's id", min_length = 26, max_length = 26)),
    responses(
        (status = 202, description = "`lifeboat.cancel-request/1`: it was asked", body = documents::CancelRequest),
        (status = 400, description = "The id cannot be read", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 404, description = "There is no such run", body = FailureDocument),
        (status = 409, description = "It does not run in this daemon (any more)", body = FailureDocument),
    )
)]
pub(super) async fn cancel(State(web): State<Arc<Web>>, id: Result<Path<String>, PathRejection>) -> Result<Response, Failure> {
    let id = run_id(id)?;
    let asked = ask(&web, move |web| match web.control.cancel_run(id, WHO) {
        Err(error) if error.kind() == Kind::NotFound => {
            // Known, but not of this daemon or over: that is told apart from one that never was.
            web.journal.run(id)?;
            Err(Error::new(Kind::Busy, format!("cancel run {id}: it does not run in this daemon"))
                .hint("it may be over, or run elsewhere: /api/v1/runs/ID tells its state, host and process"))
        }
        asked => asked,
    });
    asked.await?;
    tracing::info!(run = %id, "the API was asked to cancel a run");
    Ok((StatusCode::ACCEPTED, Json(json!({ "schema": "lifeboat.cancel-request/1", "id": id }))).into_response())
}
