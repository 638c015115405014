use schemas::SignalValue;
use serde_json::{Value, json};

use super::super::media::tests::RED_PIXEL;
use super::super::test_server::{
    TestServer, answer, ask, ask_one, configure, open, open_in, request,
};
use super::super::{ErrorClass, NotKept};

fn keys(server: &TestServer, further: &str) -> String {
    let url = &server.url;
    format!("kind = \"ollama\"\nurl = \"{url}\"\nmodel = \"llava\"\n{further}")
}

fn chat(logprobs: &Value) -> Value {
    json!({
        "model": "llava:7b", "message": {"role": "assistant", "content": "red"}, "done": true,
        "done_reason": "stop", "prompt_eval_count": 11, "eval_count": 2, "logprobs": logprobs,
    })
}

#[tokio::test]
async fn a_chat_gives_text_and_logprobs_for_text_and_picture() {
    // Two tokens that print alike stay two; the second position's chosen one is not among the most probable.
    let logprobs = json!([
        {"token": "red", "logprob": -0.5, "bytes": [114, 101, 100], "top_logprobs": [
            {"token": "red", "logprob": -0.5, "bytes": [114, 101, 100]},
            {"token": "\u{fffd}", "logprob": -1.5, "bytes": [195]},
            {"token": "\u{fffd}", "logprob": -2.5, "bytes": [196]},
        ]},
        {"token": "!", "logprob": -9.0, "top_logprobs": [{"token": ".", "logprob": -0.1}]},
    ]);
    let server = TestServer::saying(200, chat(&logprobs)).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("red.png"), RED_PIXEL).unwrap();
    let further = "image_field = \"picture\"\nsystem = \"short\"\nmax_tokens = 5\nseed = 40\n\
                   temperature = 0.5\ntop_logprobs = 20\nsignals = [\"text\", \"logprobs\"]\nkeep_alive = \"10m\"\noptions = {num_ctx = 512}";
    let teacher = open_in(folder.path(), &keys(&server, further)).unwrap();
    let mut asked = request(0, "which colour?");
    (asked.image, asked.draw) = (Some("red.png".into()), 2);
    let requests = [asked];
    let most = teacher.most(&requests);
    assert!(most.tokens_in > 1000 && most.tokens_out == 5, "{most:?}");
    let reply = teacher
        .query(&requests, &NotKept)
        .await
        .unwrap()
        .replies
        .remove(0)
        .unwrap();
    assert_eq!(reply.signals["text"], SignalValue::Text("red".into()));
    let SignalValue::TokenTopK(top_k) = &reply.signals["logprobs"] else {
        panic!("{reply:?}")
    };
    assert_eq!(top_k.positions.len(), 2);
    let bytes = |entry: usize| {
        top_k.positions[0].entries[entry]
            .token
            .bytes
            .clone()
            .unwrap()
    };
    assert_eq!(
        (bytes(0), bytes(1), bytes(2)),
        (b"red".to_vec(), vec![195], vec![196])
    );
    let chosen = top_k.positions[1].chosen.as_ref().unwrap();
    assert_eq!(
        (chosen.token.bytes.as_deref(), chosen.logprob),
        (Some(&b"!"[..]), -9.0)
    );
    let provenance = &reply.provenance;
    assert_eq!(
        (provenance.tokens_in, provenance.tokens_out),
        (Some(11), Some(2))
    );
    assert_eq!(provenance.served_model.as_deref(), Some("llava:7b"));
    assert_eq!(provenance.finish_reason.as_deref(), Some("stop"));
    let call = server.call();
    assert_eq!(call.path, "/api/chat");
    let image = call.body["messages"][1]["images"][0]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(image.starts_with("iVBOR"), "{image}");
    assert_eq!(
        call.body,
        json!({
            "model": "llava", "stream": false, "logprobs": true, "top_logprobs": 20, "keep_alive": "10m",
            "messages": [
                {"role": "system", "content": "short"},
                {"role": "user", "content": "which colour?", "images": [image]},
            ],
            "options": {"num_ctx": 512, "num_predict": 5, "seed": 42, "temperature": 0.5},
        })
    );
}

#[tokio::test]
async fn what_a_chat_cannot_give_fails_its_row() {
    let base = "max_tokens = 5\n";
    let missing = TestServer::saying(200, chat(&Value::Null)).await;
    let teacher = open(&keys(&missing, &format!("{base}signals = [\"logprobs\"]")));
    let error = ask_one(teacher.as_ref(), "a").await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic);
    assert!(error.hint().unwrap().contains("0.12.11"));
    assert!(
        ask_one(open(&keys(&missing, base)).as_ref(), "a")
            .await
            .is_ok()
    );

    let streamed = json!({"message": {"content": "r"}, "done": false});
    let server = TestServer::saying(200, streamed).await;
    let error = ask_one(open(&keys(&server, base)).as_ref(), "a")
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic);

    let server = TestServer::saying(404, json!({"error": "model 'llava' not found"})).await;
    let error = ask_one(open(&keys(&server, base)).as_ref(), "a")
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic);
    assert!(error.message.contains("model 'llava' not found"));
}

#[tokio::test]
async fn a_message_without_content_fails_its_row() {
    for (message, text) in [
        (json!({"role": "assistant"}), None),
        (json!({"role": "assistant", "content": null}), None),
        (json!({"role": "assistant", "content": ""}), Some("")),
    ] {
        let body = json!({"message": message, "done": true, "done_reason": "stop"});
        let server = TestServer::saying(200, body).await;
        let reply = ask_one(open(&keys(&server, "")).as_ref(), "a").await;
        match text {
            Some(text) => assert_eq!(
                reply.unwrap().signals["text"],
                SignalValue::Text(text.into())
            ),
            None => assert_eq!(reply.unwrap_err().message, "the reply has no text"),
        }
    }
}

#[tokio::test]
async fn the_most_counts_the_system_and_the_schema() {
    let server = TestServer::saying(200, json!({})).await;
    let bare = open(&keys(&server, "")).most(&[request(0, "a")]);
    let further = format!(
        "system = \"{}\"\nformat = {{type = \"object\"}}",
        "s".repeat(3000)
    );
    let most = open(&keys(&server, &further)).most(&[request(0, "a")]);
    assert_eq!(most.tokens_in - bare.tokens_in, 3000 + 17);
}

#[tokio::test]
async fn embeddings_come_in_the_order_of_the_texts() {
    let body = json!({"model": "e", "embeddings": [[1, 2], [3, 4]], "prompt_eval_count": 7});
    let server = TestServer::saying(200, body).await;
    let teacher = open(&keys(&server, "use = \"embed\"\ndimensions = 2"));
    let replies = ask(teacher.as_ref(), &["a", "b"]).await.unwrap();
    let second = replies[1].as_ref().unwrap();
    assert_eq!(
        second.signals["feature"],
        SignalValue::Vector(vec![3.0, 4.0])
    );
    let tokens = replies
        .iter()
        .flatten()
        .filter_map(|reply| reply.provenance.tokens_in);
    assert_eq!(tokens.sum::<u32>(), 7);
    let call = server.call();
    assert_eq!(call.path, "/api/embed");
    assert_eq!(
        call.body,
        json!({"model": "llava", "input": ["a", "b"], "truncate": false, "dimensions": 2})
    );
}

#[tokio::test]
async fn a_vector_of_nan_costs_its_row_alone_and_no_second_try() {
    let server = TestServer::start(|call| {
        let inputs = call.body["input"].as_array().unwrap();
        if inputs.contains(&json!("bad")) {
            return answer(500, json!({"error": "json: unsupported value: NaN"}));
        }
        answer(200, json!({"embeddings": vec![[1]; inputs.len()]}))
    })
    .await;
    let teacher = open(&keys(&server, "use = \"embed\""));
    let replies = ask(teacher.as_ref(), &["a", "bad"]).await.unwrap();
    assert!(replies[0].is_ok());
    assert_eq!(
        replies[1].as_ref().unwrap_err().class,
        ErrorClass::Deterministic
    );
    assert_eq!(server.calls().len(), 3);
}

#[test]
fn keys_that_cannot_work_are_refused() {
    let base = "kind = \"ollama\"\nurl = \"http://127.0.0.1:1\"\nmodel = \"m\"\n";
    for (further, problem) in [
        (
            "signals = [\"logprobs\"]\ntop_logprobs = 21",
            "at most 20 tokens",
        ),
        (
            "max_tokens = 5\noptions = {num_predict = 1}",
            "`num_predict` has a key of its own",
        ),
        (
            "use = \"embed\"\nmax_tokens = 5",
            "unknown field `max_tokens`",
        ),
        (
            "signals = [\"class_logits\"]",
            "Ollama gives `text` and `logprobs`",
        ),
    ] {
        let refusal = configure(&format!("{base}{further}")).unwrap_err();
        assert!(refusal.contains(problem), "{refusal}");
    }
}
