//! The teacher `embeddings` against servers that answer in every way that servers do.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use harvest::cmd::open_teacher;
use harvest::pipeline::teacher_section;
use harvest::reporter::Watch;
use harvest::teacher::{self, ErrorClass, Request};
use harvest::{Place, Plan, Reply, Stop, Teacher, TeacherError};
use schemas::SignalValue;
use serde_json::json;

use crate::support::{Call, Project, Server, embedding, good, id, refusal, reply};

fn teacher(url: &str, more: &str, max_tries: u32) -> Arc<dyn Teacher> {
    let section = format!(
        "[teacher]\nkind = \"embeddings\"\nurl = \"{url}\"\nmodel = \"m\"\n{more}\n[run]\nmax_tries = {max_tries}\n"
    );
    let project = Project::new(&["text"], &section);
    let config = project.config();
    let plan = Plan::open(&config, 0, None).unwrap();
    let place = Place::local(&project.cache());
    let (teachers, run) = teacher_section(&config, Path::new("harvest.toml"), "run").unwrap();
    let watch = Watch::default();
    open_teacher(&plan, &place.work, teachers, run, &watch, &Stop::default()).unwrap()
}

async fn ask_about(teacher: &dyn Teacher, text: &str) -> Result<Reply, TeacherError> {
    teacher::ask_alone(teacher, &Request::text(id(text), 0, text)).await
}

async fn ask(server: &Server, more: &str, max_tries: u32) -> Result<Reply, TeacherError> {
    ask_about(teacher(&server.url, more, max_tries).as_ref(), "text").await
}

fn vector(reply: &Reply) -> &[f32] {
    match &reply.signals["feature"] {
        SignalValue::Vector(values) => values,
        other => panic!("{other:?}"),
    }
}

/// Answers with `first` once and well afterwards.
async fn once(first: impl Fn() -> Response + Send + Sync + 'static) -> Server {
    Server::start(move |call: &Call| {
        if call.num_before == 0 {
            first()
        } else {
            good(call)
        }
    })
    .await
}

#[tokio::test]
async fn numbers_and_base64_are_asked_for_and_read() {
    let server = Server::start(|call: &Call| match call.body["encoding_format"].as_str() {
        Some("base64") => embedding(&json!("AADAPwAAAMA=")),
        _ => embedding(&json!([1.5, -2])),
    })
    .await;
    for encoding in ["float", "base64"] {
        let reply = ask(&server, &format!("encoding = \"{encoding}\""), 1)
            .await
            .unwrap();
        assert_eq!(vector(&reply), [1.5, -2.0]);
        let provenance = reply.provenance;
        assert_eq!(provenance.served_model.as_deref(), Some("served-1"));
        assert_eq!((provenance.tokens_in, provenance.tries), (Some(7), 1));
        assert!(provenance.latency_ms.unwrap() > 0.0);
    }
    let body = &server.calls()[0].body;
    assert_eq!(
        *body,
        json!({"model": "m", "input": "text", "encoding_format": "float"})
    );
}

#[tokio::test]
async fn a_server_that_ignores_base64_is_understood() {
    let server = Server::start(|_: &Call| embedding(&json!([1.5, -2]))).await;
    assert_eq!(
        vector(&ask(&server, "encoding = \"base64\"", 1).await.unwrap()),
        [1.5, -2.0]
    );
}

#[tokio::test]
async fn another_width_than_asked_for_is_refused() {
    let server = Server::start(|call: &Call| {
        embedding(&json!(vec![
            0.0;
            call.body["dimensions"].as_u64().unwrap()
                as usize
                / 2
        ]))
    })
    .await;
    let error = ask(&server, "dimensions = 4", 3).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic);
    assert_eq!(
        error.to_string(),
        "the vector has 2 values, 4 dimensions were asked for"
    );
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test]
async fn every_retry_header_is_obeyed() {
    for header in [("retry-after-ms", "20"), ("retry-after", "0.02")] {
        let server = once(move || reply(429, &[header], "slow down")).await;
        let started = Instant::now();
        let reply = ask(&server, "", 2).await.unwrap();
        assert_eq!(reply.provenance.tries, 2);
        // Without the header it would have waited half a second.
        assert!(
            started.elapsed() < Duration::from_millis(450),
            "{header:?} took {:?}",
            started.elapsed()
        );
    }
    // A date that has passed leaves the wait to the client.
    for (value, milliseconds) in [("1", 1_000), ("Sun, 06 Nov 1994 08:49:37 GMT", 500)] {
        let server = once(move || reply(429, &[("retry-after", value)], "")).await;
        let started = Instant::now();
        ask(&server, "", 2).await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(milliseconds));
    }
}

#[tokio::test]
async fn x_should_retry_decides_except_for_what_never_changes() {
    let server = once(|| reply(500, &[("x-should-retry", "false")], "")).await;
    assert_eq!(
        ask(&server, "", 3).await.unwrap_err().class,
        ErrorClass::Transient
    );
    assert_eq!(server.calls().len(), 1);
    let server = once(|| {
        reply(
            404,
            &[("x-should-retry", "true"), ("retry-after-ms", "1")],
            "",
        )
    })
    .await;
    assert_eq!(ask(&server, "", 3).await.unwrap().provenance.tries, 2);
    let server = once(|| reply(422, &[("x-should-retry", "true")], r#"{"detail": "no"}"#)).await;
    let error = ask(&server, "", 3).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server answered 422 Unprocessable Entity: no"
    );
    assert_eq!(server.calls().len(), 1);
}

#[tokio::test]
async fn statuses_fall_into_classes() {
    use ErrorClass::{Credentials, Deterministic, Overload, Quota, Rate, Transient};
    for (status, code, class) in [
        (400, "", Deterministic),
        (404, "", Deterministic),
        (413, "", Deterministic),
        (422, "", Deterministic),
        (501, "", Deterministic),
        (400, "context_length_exceeded", Deterministic),
        (500, "exceed_context_size_error", Deterministic),
        (401, "", Credentials),
        (403, "", Credentials),
        (403, "content_policy_violation", Deterministic),
        (402, "", Quota),
        (429, "insufficient_quota", Quota),
        (400, "billing_hard_limit_reached", Quota),
        (403, "billing_not_active", Quota),
        (429, "exceeded_current_quota_error", Quota),
        (404, "model_not_found", Deterministic),
        (429, "", Rate),
        (429, "overloaded", Overload),
        (503, "", Overload),
        (529, "", Overload),
        (408, "", Transient),
        (409, "", Transient),
        (500, "", Transient),
        (502, "", Transient),
    ] {
        let server = Server::start(move |_: &Call| refusal(status, code, "why")).await;
        let error = ask(&server, "", 1).await.unwrap_err();
        assert_eq!((error.class, error.tries), (class, 1), "{status} {code}");
        assert!(error.to_string().ends_with(": why"), "{error}");
        assert_eq!(
            error.is_retryable(),
            matches!(class, Rate | Overload | Transient)
        );
    }
}

#[tokio::test]
async fn a_refusal_says_what_to_do_next() {
    for (status, code, message, next) in [
        (400, "", "Your credit balance is too low", "top up"),
        (400, "", "top_logprobs must be at most 5", "`top_logprobs`"),
        (400, "", "no", "the teacher's section"),
        (404, "", "no such model", "`model`"),
        (405, "", "not here", "`url`"),
        (400, "model_not_found", "no such model", "`model`"),
        (501, "", "not here", "leave the signal"),
    ] {
        let server = Server::start(move |_: &Call| refusal(status, code, message)).await;
        let error = ask(&server, "", 1).await.unwrap_err();
        let hint = error.hint().unwrap();
        assert!(hint.contains(next), "{status} {message}: {hint}");
        let is_of_no_row = status > 403 || code == "model_not_found";
        assert_eq!(error.is_lacking, is_of_no_row, "{status} {message}");
    }
}

#[tokio::test]
async fn faults_that_pass_are_asked_again_and_bounded() {
    let server = once(|| refusal(500, "", "oops")).await;
    assert_eq!(ask(&server, "", 2).await.unwrap().provenance.tries, 2);

    let forever = Server::start(|_: &Call| reply(500, &[("retry-after-ms", "1")], "oops")).await;
    assert_eq!(ask(&forever, "", 4).await.unwrap_err().tries, 4);
    assert_eq!(forever.calls().len(), 4);

    let broken_off = once(|| {
        let chunks = [
            Ok(&b"{\"data\": [{\"emb"[..]),
            Err(std::io::Error::other("gone")),
        ];
        reply(200, &[], Body::from_stream(futures::stream::iter(chunks)))
    })
    .await;
    assert_eq!(ask(&broken_off, "", 2).await.unwrap().provenance.tries, 2);

    let html = once(|| reply(200, &[("retry-after-ms", "1")], "<html>busy</html>")).await;
    assert_eq!(ask(&html, "", 2).await.unwrap().provenance.tries, 2);
}

#[tokio::test]
async fn vectors_that_cannot_be_used_are_not_asked_for_again() {
    for (value, problem) in [
        (json!([[1.0], [2.0]]), "one vector per token came back"),
        (json!([1.0, null]), "value 1 of the vector is NaN"),
        (json!([]), "width 0"),
        (json!("AAA"), "base64"),
    ] {
        let server = Server::start(move |_: &Call| embedding(&value)).await;
        let error = ask(&server, "", 3).await.unwrap_err();
        assert!(
            error.class == ErrorClass::Deterministic && error.to_string().contains(problem),
            "{error}"
        );
        assert_eq!(server.calls().len(), 1);
    }
}

#[tokio::test]
async fn a_reply_without_end_is_cut_off() {
    let server = Server::start(|_: &Call| {
        let chunks =
            std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])).take(80);
        reply(200, &[], Body::from_stream(futures::stream::iter(chunks)))
    })
    .await;
    let error = ask(&server, "", 1).await.unwrap_err();
    assert_eq!(error.to_string(), "the reply is larger than 64 MiB");
}

#[tokio::test]
async fn redirects_stay_on_the_host() {
    let other = Server::start(good).await;
    let target = format!("{}/embeddings", other.url);
    let server = Server::start(move |_: &Call| reply(307, &[("location", &target)], "")).await;
    let error = ask(&server, "", 3).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic);
    assert!(
        error.to_string().contains("redirects to another host"),
        "{error}"
    );
    assert_eq!(other.calls().len(), 0);

    let server = once(|| reply(307, &[("location", "/v2/embeddings")], "")).await;
    ask(&server, "", 1).await.unwrap();
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    drop(listener);
    let error = ask_about(teacher(&url, "", 1).as_ref(), "text")
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient);
    assert!(
        error.to_string().contains(&url) && error.to_string().contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn no_key_is_sent_where_none_is_configured() {
    let server = Server::start(good).await;
    ask(&server, "", 1).await.unwrap();
    assert!(!server.calls()[0].headers.contains_key("authorization"));
}
