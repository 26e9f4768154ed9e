//! `/metrics`, `/readyz` and `/healthz` of a process, by the plainest HTTP.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// No page is larger.
const MAX_PAGE: u64 = 4 * 1024 * 1024;
const LIMIT: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Page {
    /// The status code.
    pub status: u16,
    /// The text.
    pub body: String,
}

/// Asks for a page.
///
/// # Errors
/// When nobody answers.
pub async fn get(addr: SocketAddr, path: &str) -> io::Result<Page> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_PAGE).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = timeout(LIMIT, exchange).await??;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other("no HTTP answer"))?;
    let status = head
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::other("no HTTP status"))?;
    Ok(Page {
        status,
        body: body.to_owned(),
    })
}

/// The sum of a metric's series whose labels contain all of `labels`, such as `milestone="appended"`.
#[must_use]
pub fn metric(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let mut sum = None;
    for line in page.lines() {
        let Some(rest) = line.strip_prefix(name) else {
            continue;
        };
        let (series, value) = match rest.strip_prefix('{') {
            Some(labelled) => match labelled.split_once('}') {
                Some(split) => split,
                None => continue,
            },
            None if rest.starts_with(' ') => ("", rest),
            None => continue,
        };
        if labels.iter().all(|label| series.contains(label))
            && let Ok(value) = value.trim().parse::<f64>()
        {
            *sum.get_or_insert(0.0) += value;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_labels() {
        let page = "# TYPE a counter\na_total{m=\"x\",r=\"1\"} 2\na_total{m=\"x\",r=\"2\"} 3\na_total{m=\"y\"} 7\nb 1\nab 5\n";
        assert_eq!(metric(page, "a_total", &["m=\"x\""]), Some(5.0));
        assert_eq!(metric(page, "a_total", &[]), Some(12.0));
        assert_eq!(metric(page, "b", &[]), Some(1.0));
        assert_eq!(metric(page, "a", &[]), None);
        assert_eq!(metric(page, "a_total", &["m=\"z\""]), None);
    }
}
