//! Connections: one task each, which ends with its connection, with the drain, or when a stream on it must be cut.

use std::{
    convert::Infallible,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming as Requests, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mailbell_runtime::{
    drain::DrainHandle,
    incoming::{Connection, Incoming},
};
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;

use crate::{
    Options,
    device::Line,
    others::Others,
    service::{call_name, serve},
    shared::Shared,
};

/// Requests are small, so the windows in which clients send are the smallest that the protocol allows without a stall.
const WINDOW: u32 = 64 * 1024;
/// What one stream may have in its connection's buffer: two of the largest events. Behind it waits the device's own queue.
const SEND_BUFFER: usize = 20 * 1024;
/// The longest token, and the rest.
const HEADERS: u32 = 40 * 1024;
/// How long a connection may take for its end once its streams are over.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves what comes until the listener's end, and then what is open, at most until the drain's deadline.
pub(crate) async fn run(
    mut incoming: Incoming,
    shared: Arc<Shared>,
    others: Others,
    drain: DrainHandle,
) {
    let http = Arc::new(http(&shared.options));
    let tasks = TaskTracker::new();
    while let Some(accepted) = incoming.next().await {
        let Ok(connection) = accepted else { continue };
        let served = Served {
            shared: Arc::clone(&shared),
            others: others.clone(),
            line: Line::default(),
        };
        let idle = shared.options.idle;
        // In its own task, which the tracker waits for: it ends by itself, by its line, or by the drain's deadline.
        tasks.spawn(serve_connection(
            Arc::clone(&http),
            connection,
            served,
            idle,
            drain.clone(),
        ));
    }
    drop(shared);
    tasks.close();
    tasks.wait().await;
}

fn http(options: &Options) -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(options.streams_per_connection)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADERS)
        .keep_alive_interval(options.keep_alive)
        .keep_alive_timeout(options.keep_alive_timeout)
        // Nobody reads it, and it costs a clock for each answer.
        .auto_date_header(false);
    http
}

/// What answers the calls of one connection.
#[derive(Clone)]
struct Served {
    shared: Arc<Shared>,
    others: Others,
    line: Line,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl Served {
    fn call(&self, request: Request<Requests>) -> Answer {
        if call_name(request.uri().path()).is_some() {
            let (shared, line) = (Arc::clone(&self.shared), Arc::clone(&self.line));
            return Box::pin(async move { Ok(serve(shared, line, request).await) });
        }
        let others = self.others.clone();
        // Held until the answer begins. What it streams after that does not keep a connection open that no device uses: whoever
        // watches the health of this gateway over such a one is asked to come again.
        let line = Arc::clone(&self.line);
        Box::pin(async move {
            let answer = others.answer(request).await;
            drop(line);
            Ok(answer)
        })
    }
}

async fn serve_connection(
    http: Arc<http2::Builder<TokioExecutor>>,
    connection: Connection,
    served: Served,
    idle: Duration,
    mut drain: DrainHandle,
) {
    let line: CancellationToken = served.line.as_ref().clone();
    let in_use = Arc::downgrade(&served.line);
    let service = service_fn(move |request| served.call(request));
    // The service itself holds one.
    let is_idle = move || in_use.strong_count() <= 1;
    let mut serving = pin!(http.serve_connection(TokioIo::new(connection), service));
    let mut idle_look = pin!(sleep(idle));
    let mut deadline: Option<Instant> = None;
    loop {
        let leaving = deadline.is_some();
        let until = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // First: whoever cancels it has waited long enough. Dropping `serving` closes the socket.
            () = line.cancelled() => return,
            () = until => return,
            // Not cancelled by the others: it is polled again in the next turn.
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            begun = drain.signaled(), if !leaving => {
                // Takes no new streams from now on; those that are open end by the dispatcher.
                serving.as_mut().graceful_shutdown();
                deadline = Some(begun.deadline);
            }
            () = idle_look.as_mut(), if !leaving => {
                if is_idle() {
                    serving.as_mut().graceful_shutdown();
                    deadline = Some(Instant::now() + GOODBYE);
                } else {
                    idle_look.as_mut().reset(Instant::now() + idle);
                }
            }
        }
    }
}
