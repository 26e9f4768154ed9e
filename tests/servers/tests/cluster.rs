//! A cluster of three whose leaders are found, cut off and killed.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeSet;
use std::time::Duration;

use mailbell_test_servers::{NatsCluster, NatsOptions, NatsServer, proxy::Mode};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Elections take seconds, on a machine that tests share more.
const SOON: Duration = Duration::from_secs(60);

/// A leader answers at once.
const ANSWER: Duration = Duration::from_secs(5);

const STREAM: &str = "S";

/// Makes a stream with a copy on each node. A question that comes while a leader is chosen is answered by nobody: it is asked again.
async fn make_stream(cluster: &NatsCluster) {
    until(|| async {
        let asked = timeout(ANSWER, ask_for_stream(cluster)).await;
        asked.is_ok().then_some(())
    })
    .await;
}

async fn ask_for_stream(cluster: &NatsCluster) {
    let stream = TcpStream::connect(("127.0.0.1", cluster.nodes[0].port()))
        .await
        .unwrap();
    let mut stream = BufStream::new(stream);
    let config = format!(r#"{{"name":"{STREAM}","subjects":["{STREAM}"],"num_replicas":3}}"#);
    let request = format!(
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB $JS.API.STREAM.CREATE.{STREAM} answer {}\r\n{config}\r\n",
        config.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut line = String::new();
    while !line.contains("stream_create_response") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).await.unwrap(), 0);
    }
    assert!(line.contains("\"config\""), "{line}");
}

/// Looks until there is what is wanted.
async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, found).await.unwrap()
}

/// Waits until some other node than this leads the stream.
async fn leader(cluster: &NatsCluster, not: Option<usize>) -> usize {
    until(|| async {
        let leader = cluster.stream_leader(STREAM).await;
        leader.filter(|leader| Some(*leader) != not)
    })
    .await
}

/// How many others a node has routes to; there are several to each.
async fn neighbours(node: &NatsServer) -> usize {
    let page = node.monitor("/routez").await.unwrap();
    let routes = page["routes"].as_array().cloned().unwrap_or_default();
    let names: BTreeSet<_> = routes
        .iter()
        .filter_map(|route| route["remote_name"].as_str())
        .collect();
    names.len()
}

#[tokio::test]
async fn another_leads_when_the_leader_is_cut_off_or_killed() {
    let mut cluster = NatsCluster::start_cuttable(3, NatsOptions::default())
        .await
        .unwrap();
    until(|| cluster.meta_leader()).await;
    make_stream(&cluster).await;
    let first = leader(&cluster, None).await;
    cluster.routes_of(first, Mode::Cut).unwrap();
    // The old one steps down when it has heard of nobody for a while.
    leader(&cluster, Some(first)).await;
    assert_eq!(neighbours(&cluster.nodes[first]).await, 0);
    cluster.routes_of(first, Mode::PASS).unwrap();
    cluster.route(0, 4, Mode::PASS).unwrap_err();
    let node = &cluster.nodes[first];
    until(|| async { (neighbours(node).await == 2).then_some(()) }).await;
    let second = leader(&cluster, None).await;
    cluster.nodes[second].kill();
    leader(&cluster, Some(second)).await;
    cluster.nodes[second].restart().await.unwrap();
}
