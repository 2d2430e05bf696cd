//! Drill reports, from the repositories.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use crate::error::{Error, Kind, Result};
use crate::id::ReportId;
use crate::ops::drill::{self, DrillReport};
use crate::ops::resolve::{self, Surroundings};
use crate::plan::Plan;
use crate::web::Web;
use crate::web::api::ask_store;
use crate::web::api::runs::bad_query;
use crate::web::documents;
use crate::web::failure::{Failure, FailureDocument};

const DEFAULT_LIMIT: usize = 20;
const MOST: usize = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DrillsQuery {
    /// Of this plan.
    #[param(max_length = 64)]
    plan: String,
    /// At most so many, the newest; 20 unless said otherwise.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// The drills of a plan, oldest first
#[utoipa::path(
    get,
    path = "/api/v1/drills",
    tag = "recovery",
    params(DrillsQuery),
    responses(
        (status = 200, description = "`lifeboat.drills/1`; `damaged` names reports that cannot be read", body = documents::Drills),
        (status = 400, description = "The query cannot be understood, or there is no such plan", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 429, description = "Other requests are reading the repositories", body = FailureDocument),
        (status = 503, description = "The repository does not answer", body = FailureDocument),
    )
)]
pub(super) async fn list(State(web): State<Arc<Web>>, query: Result<Query<DrillsQuery>, QueryRejection>) -> Result<Json<Value>, Failure> {
    let Query(query) = query.map_err(|rejection| bad_query(&rejection))?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if limit == 0 || limit > MOST {
        return Err(Failure::bad_request(format!("list drills: limit must be between 1 and {MOST}")));
    }
    let plans = web.control.plans();
    let plan = Arc::clone(plans.plan(&query.plan)?);
    ask_store(&web, move |_, surroundings| newest(&plan, limit, surroundings)).await.map(Json)
}

fn newest(plan: &Plan, limit: usize, surroundings: &Surroundings) -> Result<Value> {
    let repository = resolve::repository(&plan.repository)?.open(surroundings)?;
    let (mut drills, damaged) = drill::history(&repository, Some(&plan.name))?;
    drills.sort_by_key(|drill| drill.id);
    let older = drills.len().saturating_sub(limit);
    drills.drain(..older);
    let damaged: Vec<String> = damaged.iter().map(crate::ops::explain).collect();
    Ok(json!({ "schema": "lifeboat.drills/1", "drills": drills, "damaged": damaged }))
}

/// One drill report
#[utoipa::path(
    get,
    path = "/api/v1/drills/{id}",
    tag = "recovery",
    params(("id" = String, Path, description = "A report's id", min_length = 26, max_length = 26)),
    responses(
        (status = 200, description = "`lifeboat.drill/1`", body = documents::Drill),
        (status = 400, description = "The id cannot be read", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 404, description = "No repository has such a report", body = FailureDocument),
        (status = 429, description = "Other requests are reading the repositories", body = FailureDocument),
        (status = 503, description = "A repository does not answer, and no other has it", body = FailureDocument),
    )
)]
pub(super) async fn one(State(web): State<Arc<Web>>, id: Result<Path<String>, PathRejection>) -> Result<Json<DrillReport>, Failure> {
    let Path(id) = id.map_err(|_| Failure::bad_request("read the report's id: it is no text"))?;
    let id: ReportId = id.to_ascii_lowercase().parse().map_err(|_| Failure::bad_request("read the report's id: it is none"))?;
    ask_store(&web, move |web, surroundings| find(web, id, surroundings)).await.map(Json)
}

/// Another repository may have it; one that cannot be opened is told when none has.
fn find(web: &Web, id: ReportId, surroundings: &Surroundings) -> Result<DrillReport> {
    let mut trouble: Option<Error> = None;
    for repository in web.control.plans().repositories.values() {
        let found = resolve::repository(repository)
            .and_then(|settings| settings.open(surroundings))
            .and_then(|open| drill::find(&open, &id.to_string()));
        match found {
            Ok(report) => return Ok(report),
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    Err(trouble.unwrap_or_else(|| {
        Error::new(Kind::NotFound, format!("find drill report {id}: no repository of the plans has it"))
            .hint("/api/v1/drills?plan=NAME lists them")
    }))
}
