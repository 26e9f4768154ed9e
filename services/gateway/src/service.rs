//! `mailbell.push.v1.Push`, by hand: two of its calls answer with bytes that were encoded elsewhere.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::TryFutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use mailbell_proto::push::v1::{
    ClientFrame, FetchMessageRequest, ListMessagesRequest, SubscribeRequest, client_frame,
};
use tokio::time::timeout;
use tonic::{Status, Streaming, body::Body};
use tonic_prost::ProstDecoder;

use crate::{
    attach::attach,
    body::{DeviceBody, OneMessage},
    device::Line,
    frame,
    listing::list,
    shared::Shared,
};

/// The service's name, as it stands in paths, in the health service and in reflection.
pub(crate) const NAME: &str = "mailbell.push.v1.Push";
/// An acknowledgement of 512 keys has some 40 KB; the longest token some 32.
const MAX_REQUEST: usize = 64 * 1024;
/// How long the first frame may take.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// The name of the call, if the path is one of this service.
pub(crate) fn call_name(path: &str) -> Option<&str> {
    let path = path.strip_prefix('/')?;
    path.strip_prefix(NAME)?.strip_prefix('/')
}

/// Answers a call.
pub(crate) async fn serve<B>(shared: Arc<Shared>, line: Line, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    let answer = match call_name(head.uri.path()) {
        Some("Subscribe") => subscribe(&shared, line, &head.headers, requests(body)).await,
        Some("Connect") => connect(&shared, line, &head.headers, requests(body)).await,
        Some("ListMessages") => list_messages(&shared, &head.headers, requests(body)).await,
        Some("FetchMessage") => fetch_message(&shared, &head.headers, requests(body)).await,
        _ => Err(Status::unimplemented("no such call")),
    };
    answer.unwrap_or_else(|status| {
        shared.count(&status);
        status.into_http()
    })
}

fn requests<T, B>(body: B) -> Streaming<T>
where
    T: prost::Message + Default + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Streaming::new_request(ProstDecoder::default(), body, None, Some(MAX_REQUEST))
}

/// The one request of a call that has one.
async fn only<T>(mut requests: Streaming<T>) -> Result<T, Status> {
    let missing = || Status::invalid_argument("no request");
    match timeout(FIRST_FRAME, requests.message()).await {
        Ok(Ok(Some(request))) => Ok(request),
        Ok(Ok(None)) | Err(_) => Err(missing()),
        Ok(Err(status)) => Err(status),
    }
}

fn answer<B>(body: B) -> Response<Body>
where
    B: http_body::Body<Data = bytes::Bytes, Error = Infallible> + Send + 'static,
{
    let mut response = Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    response
}

async fn subscribe(
    shared: &Arc<Shared>,
    line: Line,
    headers: &HeaderMap,
    requests: Streaming<SubscribeRequest>,
) -> Result<Response<Body>, Status> {
    shared.check_serving()?;
    // Before anything of the request is read.
    let credential = shared.authenticate(headers)?;
    let request = only(requests).await?;
    let (device, registration) = attach(shared, credential, &request, line).await?;
    let shared = Arc::clone(shared);
    Ok(answer(DeviceBody::new(shared, device, registration, None)))
}

async fn connect(
    shared: &Arc<Shared>,
    line: Line,
    headers: &HeaderMap,
    mut requests: Streaming<ClientFrame>,
) -> Result<Response<Body>, Status> {
    shared.check_serving()?;
    let credential = shared.authenticate(headers)?;
    let wrong = || Status::invalid_argument("the first frame must be `subscribe`");
    let first = timeout(FIRST_FRAME, requests.message()).map_err(|_elapsed| wrong());
    let Some(ClientFrame {
        frame: Some(client_frame::Frame::Subscribe(request)),
    }) = first.await??
    else {
        return Err(wrong());
    };
    let (device, registration) = attach(shared, credential, &request, line).await?;
    let body = DeviceBody::new(Arc::clone(shared), device, registration, Some(requests));
    Ok(answer(body))
}

async fn list_messages(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    requests: Streaming<ListMessagesRequest>,
) -> Result<Response<Body>, Status> {
    shared.check_serving()?;
    let credential = shared.authenticate(headers)?;
    let request = only(requests).await?;
    let page = list(shared, &credential.grant, request).await?;
    Ok(answer(OneMessage::new(frame::message(&page))))
}

async fn fetch_message(
    shared: &Arc<Shared>,
    headers: &HeaderMap,
    requests: Streaming<FetchMessageRequest>,
) -> Result<Response<Body>, Status> {
    shared.authenticate(headers)?;
    only(requests).await?;
    Err(Status::unimplemented(
        "FetchMessage is not there in this release",
    ))
}
