use serde_json::json;

use super::super::test_server::{
    TestServer, answer, ask, ask_one, configure, open, open_in, open_watched, request,
};
use super::super::{NotKept, media::tests::RED_PIXEL};
use super::*;
use crate::reporter::Watch;

fn keys(server: &TestServer, further: &str) -> String {
    format!(
        "kind = \"embeddings\"\nurl = \"{}/v1\"\nmodel = \"m\"\n{further}",
        server.url
    )
}

fn vector(reply: &Reply) -> &[f32] {
    match &reply.signals["feature"] {
        SignalValue::Vector(values) => values,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_batch_comes_back_in_its_order_with_its_tokens_shared_out() {
    let server = TestServer::start(|call| {
        let inputs = call.body["input"].as_array().unwrap();
        let item = |index: usize| json!({"index": index, "embedding": [index, inputs[index].as_str().unwrap().len()]});
        let data: Vec<_> = (0..inputs.len()).rev().map(item).collect();
        answer(200, json!({"data": data, "model": "served", "usage": {"prompt_tokens": 10}}))
    })
    .await;
    let teacher = open(&keys(
        &server,
        "dimensions = 2\noptions = {truncate_prompt_tokens = 512}",
    ));
    let replies = ask(teacher.as_ref(), &["a", "bbb", ""]).await.unwrap();
    let replies: Vec<Reply> = replies.into_iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(vector(&replies[1]), [1.0, 3.0]);
    assert_eq!(vector(&replies[2]), [2.0, 0.0]);
    let tokens: u32 = replies
        .iter()
        .filter_map(|reply| reply.provenance.tokens_in)
        .sum();
    assert_eq!(tokens, 10);
    assert_eq!(
        replies[0].provenance.served_model.as_deref(),
        Some("served")
    );
    let call = server.call();
    assert_eq!(call.path, "/v1/embeddings");
    assert_eq!(
        call.body,
        json!({
            "model": "m", "input": ["a", "bbb", ""], "encoding_format": "float", "dimensions": 2,
            "truncate_prompt_tokens": 512,
        })
    );
}

#[tokio::test]
async fn a_bad_vector_costs_its_own_row_and_is_not_asked_again() {
    let body = json!({"data": [
        {"index": 0, "embedding": [1, 2]}, {"index": 1, "embedding": [1, null]},
        {"index": 2, "embedding": [1, 2, 3]},
    ]});
    let server = TestServer::saying(200, body).await;
    let teacher = open(&keys(&server, "dimensions = 2"));
    let replies = ask(teacher.as_ref(), &["a", "b", "c"]).await.unwrap();
    assert!(replies[0].is_ok());
    for (reply, problem) in [
        (&replies[1], "value 1 of the vector is NaN"),
        (&replies[2], "3 values"),
    ] {
        let error = reply.as_ref().unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert!(error.message.contains(problem), "{error}");
    }
    server.call();
}

#[tokio::test]
async fn a_reply_without_a_match_is_narrowed_down_to_rows_that_have_one() {
    // The server answers as if one input were another.
    let server = TestServer::start(|call| match &call.body["input"] {
        Value::String(_) => answer(200, json!({"data": [{"index": 0, "embedding": [7]}]})),
        _ => answer(
            200,
            json!({"data": [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}]}),
        ),
    })
    .await;
    let teacher = open(&keys(&server, ""));
    let replies = ask(teacher.as_ref(), &["a", "b"]).await.unwrap();
    for reply in replies {
        assert_eq!(vector(&reply.unwrap()), [7.0]);
    }
}

#[tokio::test]
async fn what_a_server_makes_of_the_encoding_is_observed() {
    for (written, asked, outcome) in [
        (json!([1, 2]), "float", "m: float, as asked for"),
        (
            json!([1, 2]),
            "base64",
            "m: float, although base64 was asked for",
        ),
        (
            json!("AACAPwAAAEA="),
            "float",
            "m: base64, although float was asked for",
        ),
        (json!("AACAPwAAAEA="), "base64", "m: base64, as asked for"),
    ] {
        let body = json!({"data": [{"index": 0, "embedding": written}]});
        let server = TestServer::saying(200, body).await;
        let watch = Watch::default();
        let further = format!("encoding = \"{asked}\"");
        let teacher = open_watched(&keys(&server, &further), &watch);
        for _ in 0..2 {
            let reply = ask_one(teacher.as_ref(), "a").await.unwrap();
            assert_eq!(vector(&reply), [1.0, 2.0]);
        }
        let seen = watch.observed.all();
        assert_eq!(seen, [("encoding", outcome.to_owned())]);
    }
}

#[tokio::test]
async fn vectors_of_tokens_need_a_pool() {
    let body = json!({"data": [{"index": 0, "embedding": [[1, 2], [3, 4]]}]});
    let server = TestServer::saying(200, body).await;
    let refusal = ask_one(open(&keys(&server, "")).as_ref(), "a")
        .await
        .unwrap_err();
    assert_eq!(refusal.message, "one vector per token came back");
    let pooling = open(&keys(&server, "pool = \"mean\""));
    assert_eq!(
        vector(&ask_one(pooling.as_ref(), "a").await.unwrap()),
        [2.0, 3.0]
    );
    assert_eq!(pooling.describe().identity.settings["pool"], "mean");
}

#[tokio::test]
async fn pictures_go_as_chat_or_as_data_uris() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("red.png"), RED_PIXEL).unwrap();
    let server = TestServer::start(|call| {
        let many = call.body["input"].as_array().map_or(1, Vec::len);
        let data: Vec<_> = (0..many)
            .map(|index| json!({"index": index, "embedding": [1]}))
            .collect();
        answer(200, json!({"data": data}))
    })
    .await;
    let mut with_picture = request(0, "what is it?");
    with_picture.image = Some("red.png".into());
    let requests = [with_picture, request(1, "a text")];
    let image = "image_field = \"picture\"\n";
    let chat = open_in(
        folder.path(),
        &keys(&server, &format!("{image}input = \"chat\"")),
    )
    .unwrap();
    assert_eq!(chat.describe().batch.max_requests, 1);
    chat.query(&requests[..1], &NotKept)
        .await
        .unwrap()
        .replies
        .remove(0)
        .unwrap();
    let form = format!("{image}input = \"data-uri\"\nbatch = 2");
    let uris = open_in(folder.path(), &keys(&server, &form)).unwrap();
    for reply in uris.query(&requests, &NotKept).await.unwrap().replies {
        reply.unwrap();
    }
    let calls = server.calls();
    let content = &calls[0].body["messages"][0]["content"];
    let uri = content[0]["image_url"]["url"].as_str().unwrap();
    assert!(uri.starts_with("data:image/png;base64,iVBOR"), "{uri}");
    assert_eq!(content[1], json!({"type": "text", "text": "what is it?"}));
    assert!(calls[0].body.get("input").is_none());
    assert_eq!(calls[1].body["input"], json!([uri, "a text"]));
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_sent() {
    let base = "kind = \"embeddings\"\nurl = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"\n";
    for (further, problem) in [
        ("batch = 2049", "at most 2048 inputs"),
        ("input = \"chat\"\nbatch = 2", "a chat message is one input"),
        (
            "options = {input = \"x\"}",
            "`input` is written by harvest itself",
        ),
    ] {
        let refusal = configure(&format!("{base}{further}")).unwrap_err();
        assert!(refusal.contains(problem), "{refusal}");
    }
    let refusal = open_in(
        std::path::Path::new("."),
        &format!("{base}image_field = \"picture\""),
    );
    assert!(refusal.unwrap_err().hint().unwrap().contains("data-uri"));
}
