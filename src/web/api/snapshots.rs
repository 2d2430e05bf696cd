//! Snapshots and what moments they make possible: read from the repositories, so the slowest of all answers.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::error::Result;
use crate::ops::resolve::{self, Surroundings};
use crate::ops::snapshots::{self, SnapshotList};
use crate::plan::Plan;
use crate::web::Web;
use crate::web::api::ask_store;
use crate::web::api::runs::bad_query;
use crate::web::documents;
use crate::web::failure::{Failure, FailureDocument};

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SnapshotsQuery {
    /// Of this plan.
    #[param(max_length = 64)]
    plan: String,
    /// At most so many, the newest; 100 unless said otherwise. Ranges are always of all.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// What can be restored of a plan, oldest first
#[utoipa::path(
    get,
    path = "/api/v1/snapshots",
    tag = "recovery",
    params(SnapshotsQuery),
    responses(
        (status = 200, description = "`lifeboat.snapshots/1`. What is damaged is in it, and says so.", body = documents::Snapshots),
        (status = 400, description = "The query cannot be understood, or there is no such plan", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 429, description = "Other requests are reading the repositories", body = FailureDocument),
        (status = 503, description = "The repository does not answer", body = FailureDocument),
    )
)]
pub(super) async fn list(
    State(web): State<Arc<Web>>,
    query: Result<Query<SnapshotsQuery>, QueryRejection>,
) -> Result<Json<SnapshotList>, Failure> {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection))?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MOST {
        return Err(Failure::bad_request(format!("list snapshots: limit must be between 1 and {MOST}")));
    }
    let plans = web.control.plans();
    let plan = Arc::clone(plans.plan(&query.plan)?);
    ask_store(&web, move |_, surroundings| newest(&plan, limit, surroundings)).await.map(Json)
}

fn newest(plan: &Plan, limit: usize, surroundings: &Surroundings) -> Result<SnapshotList> {
    let repository = resolve::repository(&plan.repository)?.open(surroundings)?;
    let mut list = snapshots::run(&repository, Some(&plan.name), surroundings.clock.now())?;
    let older = list.snapshots.len().saturating_sub(limit);
    list.snapshots.drain(..older);
    Ok(list)
}
