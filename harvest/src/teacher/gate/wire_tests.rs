//! What a gate sees of real connections: how far a request has got, and what headers say.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::teacher::http::{Endpoint, HttpReply, KeyHeader};
use crate::teacher::{Bucket, ErrorClass, Sent, TeacherError};

/// Sends one request to a server that writes `answer` and closes the connection.
async fn ask(answer: &'static str) -> Result<HttpReply, TeacherError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let reply = endpoint(&url).post(&[], b"{}".to_vec()).await;
    server.await.unwrap();
    reply
}

fn endpoint(url: &str) -> Endpoint {
    let server = toml::from_str(&format!(
        "url = \"{url}\"\nmodel = \"m\"\ntimeout_seconds = 1"
    ))
    .unwrap();
    Endpoint::open(&server, KeyHeader::Bearer).unwrap()
}

#[tokio::test]
async fn it_is_known_how_far_a_request_has_got() {
    for (answer, class, sent) in [
        (
            "HTTP/1.1 500 no\r\ncontent-length: 0\r\n\r\n",
            ErrorClass::Transient,
            Sent::Refused,
        ),
        (
            "HTTP/1.1 429 no\r\ncontent-length: 9\r\n\r\nshort",
            ErrorClass::Rate,
            Sent::Refused,
        ),
        (
            "HTTP/1.1 200 ok\r\ncontent-length: 9\r\n\r\nshort",
            ErrorClass::Transient,
            Sent::Unusable,
        ),
        (
            "HTTP/1.1 200 ok\r\ncontent-length: 99999999999\r\n\r\n",
            ErrorClass::Deterministic,
            Sent::Unusable,
        ),
        ("", ErrorClass::Transient, Sent::Unanswered),
    ] {
        let error = ask(answer).await.unwrap_err();
        assert_eq!((error.class, error.sent), (class, sent), "{answer}");
    }
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    let silent = endpoint(&url).post(&[], Vec::new()).await.unwrap_err();
    assert_eq!(
        (silent.class, silent.sent),
        (ErrorClass::Transient, Sent::Unanswered)
    );
    drop(free);
    let unconnected = endpoint(&url).post(&[], Vec::new()).await.unwrap_err();
    assert_eq!(
        (unconnected.class, unconnected.sent),
        (ErrorClass::Transient, Sent::Unconnected)
    );
}

#[tokio::test]
async fn answers_and_refusals_carry_hints() {
    let expected = Some(Bucket {
        remaining: 0,
        reset: Some(Duration::from_mins(6)),
    });
    let reply = ask("HTTP/1.1 200 ok\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 6m0s\r\ncontent-length: 2\r\n\r\n{}").await;
    assert_eq!(reply.unwrap().hints.tokens, expected);
    let error = ask("HTTP/1.1 429 no\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 6m0s\r\nretry-after-ms: 20\r\ncontent-length: 0\r\n\r\n").await.unwrap_err();
    assert_eq!(
        (error.hints.tokens, error.retry_after),
        (expected, Some(Duration::from_millis(20)))
    );
}
