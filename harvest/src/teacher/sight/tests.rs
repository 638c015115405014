use axum::response::Response;
use serde_json::{Value, json};

use super::super::media::tests::RED_PIXEL;
use super::super::test_server::{Call, TestServer, answer, open_inline, request};
use super::*;

/// Keys of a teacher behind `server` that is sent pictures.
fn keys(server: &TestServer, further: &str) -> String {
    let url = &server.url;
    format!("url = \"{url}/v1\"\nmodel = \"m\"\nimage_field = \"picture\"\n{further}")
}

/// Looks at one pixel through a teacher with these keys.
async fn look_at_pixel(
    server: &TestServer,
    further: &str,
    is_known: bool,
) -> Result<Sight, TeacherError> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("red.png"), RED_PIXEL).unwrap();
    let teacher = open_inline(folder.path(), &keys(server, further)).unwrap();
    let mut asked = request(0, "what is it?");
    asked.image = Some("red.png".into());
    let known = if is_known {
        Some(ask_alone(teacher.as_ref(), &asked).await.unwrap())
    } else {
        None
    };
    look(teacher.as_ref(), &asked, known.as_ref()).await
}

/// The first data URI anywhere in a body.
fn picture_of(body: &Value) -> Option<&str> {
    match body {
        Value::String(text) => text.starts_with("data:image/").then_some(text),
        Value::Array(items) => items.iter().find_map(picture_of),
        Value::Object(items) => items.values().find_map(picture_of),
        _ => None,
    }
}

fn generated(call: &Call, tokens: impl Fn(bool) -> Option<u32>) -> Response {
    let usage = tokens(picture_of(&call.body).is_some())
        .map(|tokens| json!({"prompt_tokens": tokens, "completion_tokens": 1}));
    let message = json!({"role": "assistant", "content": "red"});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    answer(200, json!({"choices": [choice], "usage": usage}))
}

fn embedded(vector: &[f32]) -> Response {
    answer(200, json!({"data": [{"index": 0, "embedding": vector}]}))
}

#[tokio::test]
async fn a_server_that_drops_pictures_is_found_out_by_its_tokens() {
    for is_known in [true, false] {
        let server = TestServer::start(|call| generated(call, |_| Some(12))).await;
        let error = look_at_pixel(&server, "kind = \"chat\"", is_known)
            .await
            .unwrap_err();
        assert!(error.is_lacking);
        assert_eq!(
            error.message,
            "the server of `m` takes pictures and does not look at them: a prompt has 12 tokens with one and without"
        );
        assert!(error.hint().unwrap().contains("--mmproj"));
        let calls = server.calls();
        let pictures = calls.iter().map(|call| picture_of(&call.body).is_some());
        assert_eq!(pictures.collect::<Vec<_>>(), [true, false, true, false]);
    }
}

#[tokio::test]
async fn a_server_that_cuts_long_prompts_is_not_blamed() {
    // The text comes first, and nothing is left of the picture.
    let server = TestServer::start(|call| {
        let is_cut = call.body.to_string().contains("what is it?");
        generated(call, |with| Some(if with && !is_cut { 97 } else { 12 }))
    })
    .await;
    let sight = look_at_pixel(&server, "kind = \"chat\"", true).await;
    let Ok(Sight::Seen(how)) = sight else {
        panic!("{sight:?}")
    };
    assert!(
        how.contains("one takes 85 tokens, beside a short text"),
        "{how}"
    );

    let server = TestServer::start(|call| {
        let is_cut = call.body.to_string().contains("what is it?");
        let length = picture_of(&call.body).unwrap().len() as f32;
        embedded(&[1.0, if is_cut { 0.0 } else { length }])
    })
    .await;
    let sight = look_at_pixel(&server, "kind = \"embeddings\"\ninput = \"chat\"", true).await;
    let Ok(Sight::Seen(how)) = sight else {
        panic!("{sight:?}")
    };
    assert!(how.contains("the same vector"), "{how}");
}

#[tokio::test]
async fn nobody_is_blamed_without_a_second_look() {
    let server = TestServer::start(|call| {
        if call.body.to_string().contains(SHORT) {
            return answer(400, json!({"error": {"message": "too small"}}));
        }
        generated(call, |_| Some(12))
    })
    .await;
    let sight = look_at_pixel(&server, "kind = \"chat\"", true).await;
    let Ok(Sight::Unknown(why)) = sight else {
        panic!("{sight:?}")
    };
    assert!(
        why.contains("12 tokens with one and without, and") && why.contains("too small"),
        "{why}"
    );
}

#[tokio::test]
async fn a_server_that_counts_the_tokens_of_pictures_looks_at_them() {
    let tokens = |with: bool| Some(if with { 97 } else { 12 });
    let server = TestServer::start(move |call| generated(call, tokens)).await;
    let sight = look_at_pixel(&server, "kind = \"chat\"", true).await;
    assert_eq!(sight, Ok(Sight::Seen("one takes 85 tokens".into())));
}

#[tokio::test]
async fn what_cannot_be_told_is_unknown() {
    let server = TestServer::start(|call| generated(call, |_| None)).await;
    let sight = look_at_pixel(&server, "kind = \"chat\"", true).await;
    assert_eq!(
        sight,
        Ok(Sight::Unknown("the server counts no tokens".into()))
    );

    // Tokens in a cache that are not counted, and marks of a template.
    for tokens in [3, 15] {
        let count = move |with: bool| Some(if with { tokens } else { 12 });
        let server = TestServer::start(move |call| generated(call, count)).await;
        let sight = look_at_pixel(&server, "kind = \"chat\"", true).await;
        assert!(matches!(sight, Ok(Sight::Unknown(_))), "{sight:?}");
    }

    let refusing = |status: u16| {
        TestServer::start(move |call| match picture_of(&call.body) {
            Some(_) => generated(call, |_| Some(12)),
            None => answer(status, json!({"error": {"message": "where is it?"}})),
        })
    };
    let sight = look_at_pixel(&refusing(400).await, "kind = \"chat\"", true).await;
    let Ok(Sight::Unknown(why)) = sight else {
        panic!("{sight:?}")
    };
    assert!(why.contains("where is it?"), "{why}");
    let refusal = look_at_pixel(&refusing(401).await, "kind = \"chat\"", true).await;
    assert_eq!(refusal.unwrap_err().class, ErrorClass::Credentials);
}

#[tokio::test]
async fn vectors_of_two_pictures_show_whether_they_were_looked_at() {
    for input in ["chat", "data-uri"] {
        let further = format!("kind = \"embeddings\"\ninput = \"{input}\"");
        // The same up to the last bits, as kernels that add in another order give it.
        let server = TestServer::start(|call| {
            let length = picture_of(&call.body).unwrap().len() as f32;
            embedded(&[1.0, 2.0 + length * 1e-9])
        })
        .await;
        let error = look_at_pixel(&server, &further, true).await.unwrap_err();
        assert!(error.is_lacking);
        assert!(error.message.ends_with("the same vector"), "{error}");
        let uris: Vec<String> = server
            .calls()
            .iter()
            .map(|call| picture_of(&call.body).unwrap().to_owned())
            .collect();
        assert_eq!(uris.len(), 4);
        assert_ne!(uris[0], uris[1]);
        assert_ne!(uris[2], uris[3]);

        let server = TestServer::start(|call| {
            let length = picture_of(&call.body).unwrap().len() as f32;
            embedded(&[1.0, length])
        })
        .await;
        let sight = look_at_pixel(&server, &further, true).await;
        assert!(matches!(sight, Ok(Sight::Seen(_))), "{sight:?}");
    }
}

#[test]
fn the_pictures_that_are_made_differ() {
    assert_ne!(test_picture(false), test_picture(true));
}
