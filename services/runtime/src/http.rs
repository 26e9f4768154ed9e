//! `/metrics`, `/healthz` and `/readyz`.
//!
//! It outlives the drain on purpose: during it `/readyz` says so, and the last numbers are still scraped. So it holds no
//! [`crate::drain::DrainHandle`] and is stopped last, with [`HttpServer::stop`].

mod bounded;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::bounded::BoundedListener;
use crate::{
    Error,
    health::{Health, Report},
    listen::Bound,
    metrics::{CONTENT_TYPE, Metrics},
};

/// How long an open request may still take once the server is stopped.
const STOP_LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
struct Shared {
    metrics: Arc<OnceLock<Metrics>>,
    health: Health,
}

/// The running server. Dropped without [`HttpServer::stop`], it ends at once.
#[derive(Debug)]
pub struct HttpServer {
    addr: SocketAddr,
    metrics: Arc<OnceLock<Metrics>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Serves on a listener that was bound before: health at once, metrics when they are all registered, see
    /// [`HttpServer::serve_metrics`].
    ///
    /// # Errors
    /// When the runtime cannot watch the listener.
    pub fn start(bound: Bound, health: Health) -> Result<Self, Error> {
        let addr = bound.addr();
        let listener = bound.into_tokio().map_err(|source| Error::Listen {
            addr,
            flag: "the HTTP listener",
            source,
        })?;
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let metrics = Arc::new(OnceLock::new());
        let router = router(Shared {
            metrics: Arc::clone(&metrics),
            health,
        });
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(BoundedListener::new(listener), router)
                .with_graceful_shutdown(stopped)
                .await
            {
                tracing::error!(%error, "the HTTP server for metrics and health ended");
            }
        });
        Ok(Self {
            addr,
            metrics,
            stop,
            task,
        })
    }

    /// From now on these are answered; until then `/metrics` is not available. Only the first counts.
    pub fn serve_metrics(&self, metrics: Metrics) {
        let _ = self.metrics.set(metrics);
    }

    /// The address it serves on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it; open requests get a second.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // A kept-alive connection that is in the middle of nothing must not hold up the end of the process; drop ends the task.
        let _ = tokio::time::timeout(STOP_LIMIT, &mut self.task).await;
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    // Half of them would look as if the others were gone.
    let Some(metrics) = shared.metrics.get() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    respond(&shared.health.liveness())
}

async fn readyz(State(shared): State<Shared>) -> Response {
    respond(&shared.health.readiness())
}

fn respond(report: &Report) -> Response {
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    match serde_json::to_string(report) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "a health report cannot be encoded");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::listen;

    fn serve(health: &Health) -> HttpServer {
        let bound = listen::bind(SocketAddr::from(([127, 0, 0, 1], 0)), "--http-listen").unwrap();
        HttpServer::start(bound, health.clone()).unwrap()
    }

    async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let server = serve(&Health::new());
        // Not all are registered yet.
        assert_eq!(get(server.addr(), "/metrics").await.0, 503);
        server.serve_metrics(Metrics::new("test"));
        let (status, answer) = get(server.addr(), "/metrics").await;
        assert_eq!(status, 200);
        assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"));
        assert!(answer.contains("mailbell_build_info{") && answer.trim_end().ends_with("# EOF"));
        assert_eq!(get(server.addr(), "/elsewhere").await.0, 404);
        server.stop().await;
    }

    #[tokio::test]
    async fn readiness_follows_checks_and_drain() {
        let health = Health::new();
        health.set("nats", Err("starting"));
        let server = serve(&health);
        let (status, answer) = get(server.addr(), "/readyz").await;
        assert_eq!(status, 503);
        assert!(
            answer.contains(r#"{"name":"nats","ok":false,"reason":"starting"}"#),
            "{answer}"
        );
        health.set("nats", Ok::<(), &str>(()));
        assert_eq!(get(server.addr(), "/readyz").await.0, 200);
        health.set_draining();
        let (status, answer) = get(server.addr(), "/readyz").await;
        assert_eq!(status, 503);
        assert!(answer.contains(r#""draining":true"#));
        assert_eq!(get(server.addr(), "/healthz").await.0, 200);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_task_without_a_beat_is_not_healthy() {
        let health = Health::new();
        let promise = health.heartbeat("loop", Duration::ZERO);
        let server = serve(&health);
        // The age is in whole milliseconds: let the first one pass without waiting for it.
        while health.liveness().ok {
            tokio::task::yield_now().await;
        }
        assert_eq!(get(server.addr(), "/healthz").await.0, 503);
        drop(promise);
        assert_eq!(get(server.addr(), "/healthz").await.0, 200);
        server.stop().await;
    }

    #[tokio::test]
    async fn stopping_closes_the_listener_in_spite_of_an_idle_connection() {
        let server = serve(&Health::new());
        let addr = server.addr();
        let idle = TcpStream::connect(addr).await.unwrap();
        server.stop().await;
        assert!(TcpStream::connect(addr).await.is_err());
        drop(idle);
    }
}
