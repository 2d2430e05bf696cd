//! The routes: which there are, what every request passes first, and the OpenAPI document, which is made of the same handlers.

mod drills;
mod plans;
mod runs;
mod snapshots;
mod status;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{Error, Kind, Result};
use crate::ops::resolve::Surroundings;
use crate::web::failure::{Failure, FailureDocument};
use crate::web::{MAX_BODY_BYTES, REQUEST_TIMEOUT, Web};

/// What a request that reads a repository may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long such a request waits for its turn.
const STORE_PATIENCE: Duration = Duration::from_secs(4);

#[derive(OpenApi)]
#[openapi(
    info(
        title = "lifeboat",
        description = "Backup and disaster recovery that keeps proving that recovery works. Every request needs a token: \
                       `Authorization: Bearer TOKEN`, the content of api.token in the state folder. Documents are those of the command line's --json."
    ),
    modifiers(&Bearer),
    security(("token" = [])),
    components(schemas(FailureDocument))
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let scheme =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The content of api.token in the state folder.")).build();
        document.components.get_or_insert_default().add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// All routes.
pub(super) fn router(web: Arc<Web>) -> Router {
    let (router, mut document) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(status::status))
        .routes(routes!(plans::list))
        .routes(routes!(plans::one))
        .routes(routes!(runs::list, runs::start))
        .routes(routes!(runs::one))
        .routes(routes!(runs::cancel))
        .routes(routes!(snapshots::list))
        .routes(routes!(drills::list))
        .routes(routes!(drills::one))
        .routes(routes!(metrics))
        .split_for_parts();
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    // Serializing what was built here cannot fail; an empty answer would be a broken build, which a test reads.
    let document: axum::body::Bytes = serde_json::to_vec(&document).unwrap_or_default().into();
    let document = move || std::future::ready(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], document.clone()));
    router
        .route("/openapi.json", axum::routing::get(document))
        .fallback(|| {
            std::future::ready(Failure::not_found("find what was asked for: there is no such path").hint("/openapi.json lists them"))
        })
        .method_not_allowed_fallback(|| {
            std::future::ready(Failure::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not take this method"))
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(Arc::clone(&web), pass))
        .with_state(web)
}

/// Before and after every handler: token, time, a panic, and the count of requests.
async fn pass(State(web): State<Arc<Web>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let mut response = match admit(&web, &request) {
        Ok(()) => answer(request, next).await,
        Err(failure) => failure.into_response(),
    };
    // What is told to one caller is for no cache and no other page.
    for (name, value) in [(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    web.requests.count(&route, &method, response.status(), begun.elapsed());
    response
}

fn admit(web: &Web, request: &Request) -> Result<(), Failure> {
    let Some(caller) = sole(request.headers()).and_then(|header| web.tokens.caller(header)) else {
        return Err(Failure::new(StatusCode::UNAUTHORIZED, "unauthorized", "a valid token is needed")
            .hint("send `Authorization: Bearer TOKEN` with the content of api.token in the daemon's state folder"));
    };
    let reads_only = matches!(*request.method(), Method::GET | Method::HEAD);
    if caller.may(request.uri().path(), reads_only) {
        Ok(())
    } else {
        Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", "this token may read /metrics only").hint("use the token in api.token"))
    }
}

/// The only `Authorization` header. Of several nobody can say which counts.
fn sole(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let first = all.next()?;
    all.next().is_none().then(|| first.as_bytes())
}

async fn answer(request: Request, next: Next) -> Response {
    let guarded = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(REQUEST_TIMEOUT, guarded).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            tracing::error!("a request of the API panicked");
            let error = Error::new(Kind::Bug, "answer the request: the program panicked")
                .hint("please report this, with the lines of the daemon's log");
            Failure::from(error).into_response()
        }
        Err(_) => {
            Failure::new(StatusCode::REQUEST_TIMEOUT, "timeout", format!("the request took longer than {} s", REQUEST_TIMEOUT.as_secs()))
                .into_response()
        }
    }
}

/// Asks the journal or the plans, off the I/O threads.
async fn ask<T: Send + 'static>(web: &Arc<Web>, work: impl FnOnce(&Web) -> Result<T> + Send + 'static) -> Result<T, Failure> {
    let web = Arc::clone(web);
    joined(tokio::task::spawn_blocking(move || work(&web)).await)
}

/// Asks a repository: only a few at a time, and not for ever.
async fn ask_store<T: Send + 'static>(
    web: &Arc<Web>,
    work: impl FnOnce(&Web, &Surroundings) -> Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let Ok(Ok(place)) = tokio::time::timeout(STORE_PATIENCE, Arc::clone(&web.store_places).acquire_owned()).await else {
        return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, "too-many", "other requests are reading the repositories").retry_after(5));
    };
    let surroundings = Surroundings { cancel: crate::event::Cancel::default(), ..web.surroundings.clone() };
    let cancel = surroundings.cancel.clone();
    let web = Arc::clone(web);
    let asked = tokio::task::spawn_blocking(move || {
        let _place = place;
        work(&web, &surroundings)
    });
    if let Ok(joint) = tokio::time::timeout(STORE_TIMEOUT, asked).await {
        return joined(joint);
    }
    cancel.cancel();
    let message = format!("the repository did not answer within {} s", STORE_TIMEOUT.as_secs());
    Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable.word(), message).retry_after(60))
}

fn joined<T>(joint: Result<Result<T>, tokio::task::JoinError>) -> Result<T, Failure> {
    match joint {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Error::new(Kind::Bug, "answer the request: the program panicked")
            .hint("please report this, with the lines of the daemon's log")
            .into()),
    }
}

/// What Prometheus reads
#[utoipa::path(
    get,
    path = crate::web::METRICS_PATH,
    tag = "metrics",
    responses(
        (status = 200, description = "Text format 0.0.4; see docs/reference/metrics.md. Made ready beforehand: a scrape asks nobody.", body = String, content_type = "text/plain"),
        (status = 401, description = "No valid token", body = FailureDocument),
    )
)]
async fn metrics(State(web): State<Arc<Web>>) -> Response {
    let mut text = web.board.metrics().to_string();
    web.requests.encode(&mut text);
    ([(header::CONTENT_TYPE, HeaderValue::from_static(prometheus_client::encoding::prometheus_text::CONTENT_TYPE))], text).into_response()
}
