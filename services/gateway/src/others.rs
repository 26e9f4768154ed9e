//! The services beside ours, which answer without a token: health and reflection.
//!
//! Whoever can connect can ask them, so what a question may hold is bounded in bytes and in time.

use std::time::Duration;

use http::{Request, Response};
use http_body::Body as HttpBody;
use mailbell_proto::DESCRIPTORS;
use mailbell_runtime::health::Health;
use tokio::time::timeout;
use tonic::{Status, body::Body, service::Routes};
use tonic_health::server::HealthReporter;

use crate::{Error, service::NAME};

/// A question names a service or a file.
const MAX_REQUEST: usize = 4 * 1024;
/// How long a question may take to arrive. The answer is in memory.
const LIMIT: Duration = Duration::from_secs(10);
/// How often the gRPC health service is told what `/readyz` says.
const HEALTH_PERIOD: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Others {
    routes: Routes,
}

impl Others {
    pub(crate) fn new() -> Result<(HealthReporter, Self), Error> {
        let (reporter, health) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .with_service_name(NAME)
            .build_v1()
            .map_err(|_| Error::Descriptors)?;
        let routes = Routes::new(health.max_decoding_message_size(MAX_REQUEST))
            .add_service(reflection.max_decoding_message_size(MAX_REQUEST));
        Ok((reporter, Self { routes }))
    }

    /// Answers a call, or says that its question did not arrive in time. What is streamed after the head has no limit.
    pub(crate) async fn answer<B>(mut self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let request = request.map(Body::new);
        let answering = tonic::codegen::Service::call(&mut self.routes, request);
        match timeout(LIMIT, answering).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(never)) => match never {},
            Err(_elapsed) => Status::deadline_exceeded("the request did not come").into_http(),
        }
    }
}

/// Tells the gRPC health service what `/readyz` says.
pub(crate) async fn tell_health(reporter: HealthReporter, health: Health) {
    let mut period = tokio::time::interval(HEALTH_PERIOD);
    loop {
        period.tick().await;
        let status = match health.readiness().ok {
            true => tonic_health::ServingStatus::Serving,
            false => tonic_health::ServingStatus::NotServing,
        };
        for service in ["", NAME] {
            reporter.set_service_status(service, status).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        future::poll_fn,
        pin::Pin,
        task::{Context, Poll},
    };

    use bytes::Bytes;
    use http_body::Frame;
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;

    /// A body that begins with this, and then stands still.
    struct Stalled(Option<Bytes>);

    impl HttpBody for Stalled {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.take() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Pending,
            }
        }
    }

    async fn status(path: &str, begins: &'static [u8]) -> Code {
        let (_reporter, others) = Others::new().unwrap();
        let request = Request::builder()
            .method("POST")
            .uri(path)
            .header("content-type", "application/grpc")
            .body(Stalled(Some(Bytes::from_static(begins))))
            .unwrap();
        let (head, mut body) = others.answer(request).await.into_parts();
        let mut status = Status::from_header_map(&head.headers);
        while status.is_none() {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let trailers = frame.unwrap().unwrap().into_trailers();
            status = trailers.ok().and_then(|t| Status::from_header_map(&t));
        }
        status.unwrap().code()
    }

    const CHECK: &str = "/grpc.health.v1.Health/Check";
    const WATCH: &str = "/grpc.health.v1.Health/Watch";
    const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

    #[tokio::test(start_paused = true)]
    async fn a_question_that_is_announced_too_long_is_not_waited_for() {
        let calls = [
            (CHECK, Code::OutOfRange),
            (WATCH, Code::OutOfRange),
            // It ends its stream without a word.
            (REFLECTION, Code::Ok),
        ];
        for (path, expected) in calls {
            let since = Instant::now();
            // Somewhat less than 4 MiB, which tonic takes if nobody says otherwise.
            let status = timeout(LIMIT * 2, status(path, &[0, 0, 0x3f, 0xff, 0xff, 0]));
            assert_eq!(status.await.unwrap(), expected, "{path}");
            assert_eq!(since.elapsed(), Duration::ZERO, "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_that_does_not_come_is_not_waited_for() {
        for path in [CHECK, WATCH] {
            let status = timeout(LIMIT * 2, status(path, &[0, 0, 0, 0, 9, 0])).await;
            assert_eq!(status.unwrap(), Code::DeadlineExceeded, "{path}");
        }
    }
}
