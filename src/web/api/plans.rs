//! The plans in force, without secrets.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::plan::{Plan, show_json};
use crate::web::Web;
use crate::web::documents;
use crate::web::failure::{Failure, FailureDocument};

/// The plans that the daemon follows now
#[utoipa::path(
    get,
    path = "/api/v1/plans",
    tag = "plans",
    responses(
        (status = 200, description = "`lifeboat.plans/1`", body = documents::Plans),
        (status = 401, description = "No valid token", body = FailureDocument),
    )
)]
pub(super) async fn list(State(web): State<Arc<Web>>) -> Json<Value> {
    let plans: Vec<Value> = web.control.plans().plans.values().map(|plan| short(plan)).collect();
    Json(json!({ "schema": "lifeboat.plans/1", "plans": plans }))
}

/// One plan with everything resolved
///
/// Secrets are references. What a plan file holds in plain text where a secret could have been written too (arguments of commands, variables
/// of their environment) is left out.
#[utoipa::path(
    get,
    path = "/api/v1/plans/{name}",
    tag = "plans",
    params(("name" = String, Path, description = "A plan's name", max_length = 64)),
    responses(
        (status = 200, description = "`lifeboat.plan/1`", body = documents::Plan),
        (status = 400, description = "The name cannot be read", body = FailureDocument),
        (status = 401, description = "No valid token", body = FailureDocument),
        (status = 404, description = "There is no such plan", body = FailureDocument),
    )
)]
pub(super) async fn one(State(web): State<Arc<Web>>, name: Result<Path<String>, PathRejection>) -> Result<Json<Value>, Failure> {
    let Path(name) = name.map_err(|_| Failure::bad_request("read the plan's name: it is no text"))?;
    let plans = web.control.plans();
    let plan = plans
        .plans
        .values()
        .find(|plan| plan.name.as_str() == name)
        .ok_or_else(|| Failure::not_found("find the plan: there is none of that name").hint("/api/v1/plans lists them"))?;
    Ok(Json(redacted(show_json(plan))))
}

fn short(plan: &Plan) -> Value {
    let whole = redacted(show_json(plan));
    let sources: Vec<Value> = plan.sources.iter().map(|source| json!({ "name": source.name, "kind": source.kind.word() })).collect();
    json!({
        "name": plan.name, "description": plan.description, "sources": sources, "repository": plan.repository.name,
        "schedule": whole.get("schedule"), "timezone": whole.get("timezone"), "objectives": whole.get("objectives"), "tags": plan.tags,
    })
}

/// In place of what is not shown.
const NOT_SHOWN: &str = "(not shown)";

/// Without what somebody may have written a secret into. Who holds a token of the API need not be somebody who may read plan files.
fn redacted(mut document: Value) -> Value {
    redact(&mut document);
    document
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                match (key.as_str(), &mut *value) {
                    ("dump" | "restore" | "run", Value::Array(words)) if words.len() > 1 => {
                        words.truncate(1);
                        words.push(json!(NOT_SHOWN));
                    }
                    ("environment", Value::Object(variables)) => {
                        for value in variables.values_mut().filter(|value| value.is_string()) {
                            *value = json!(NOT_SHOWN);
                        }
                    }
                    _ => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_plain_variables_are_not_shown() {
        let shown = redacted(json!({
            "sources": [{ "dump": ["mysqldump", "-phunter2"], "environment": { "A": "hunter2", "B": { "env": "B" } } }],
            "notify": [{ "run": ["tell", "hunter2"], "on": ["failure"] }],
        }));
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        assert_eq!(shown["sources"][0]["dump"], json!(["mysqldump", NOT_SHOWN]));
        assert_eq!(shown["sources"][0]["environment"]["B"], json!({ "env": "B" }));
        assert_eq!(shown["notify"][0]["on"], json!(["failure"]));
    }
}
