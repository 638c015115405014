use schemas::SignalValue;
use serde_json::{Value, json};

use super::super::media::tests::RED_PIXEL;
use super::super::test_server::{
    TestServer, ask, ask_one, configure, open, open_in, open_once, request,
};
use super::super::{ErrorClass, NotKept};

fn keys(server: &TestServer, further: &str) -> String {
    let url = &server.url;
    format!("kind = \"gemini\"\nurl = \"{url}/v1beta\"\nmodel = \"g-flash\"\n{further}")
}

fn content(candidate: &Value) -> Value {
    let usage = json!({"promptTokenCount": 9, "candidatesTokenCount": 2, "thoughtsTokenCount": 3});
    json!({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "g-flash-001"})
}

const LOGPROBS: &str = "signals = [\"text\", \"logprobs\"]\ntop_logprobs = 2\n";

#[tokio::test]
async fn text_and_logprobs_come_from_text_and_picture() {
    let top = json!([{"token": "red", "tokenId": 7, "logProbability": -0.5}, {"token": "red", "tokenId": 8, "logProbability": -1.5}]);
    let logprobs = json!({
        "chosenCandidates": [{"token": "red", "tokenId": 8, "logProbability": -1.5}],
        "topCandidates": [{"candidates": top}],
    });
    let parts = json!([{"text": "hm", "thought": true}, {"text": "r"}, {"text": "ed"}]);
    let candidate =
        json!({"content": {"parts": parts}, "finishReason": "STOP", "logprobsResult": logprobs});
    let server = TestServer::saying(200, content(&candidate)).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("red.png"), RED_PIXEL).unwrap();
    // A variable that is set in every test, in place of a key.
    let key = std::env::var("CARGO_PKG_NAME").unwrap();
    let further = format!(
        "{LOGPROBS}image_field = \"picture\"\napi_key_env = \"CARGO_PKG_NAME\"\nsystem = \"short\"\n\
         max_tokens = 5\nseed = 40\ntop_p = 0.9\noptions = {{thinkingConfig = {{thinkingBudget = 0}}}}"
    );
    let teacher = open_in(folder.path(), &keys(&server, &further)).unwrap();
    let mut asked = request(0, "which colour?");
    (asked.image, asked.draw) = (Some("red.png".into()), 2);
    let reply = teacher
        .query(&[asked], &NotKept)
        .await
        .unwrap()
        .replies
        .remove(0)
        .unwrap();
    assert_eq!(reply.signals["text"], SignalValue::Text("red".into()));
    let SignalValue::TokenTopK(top_k) = &reply.signals["logprobs"] else {
        panic!("{reply:?}")
    };
    let position = &top_k.positions[0];
    let ids: Vec<_> = position
        .entries
        .iter()
        .map(|entry| entry.token.id.unwrap())
        .collect();
    assert_eq!(
        (ids, position.chosen.as_ref().unwrap().token.id),
        (vec![7, 8], Some(8))
    );
    let provenance = &reply.provenance;
    assert_eq!(
        (provenance.tokens_in, provenance.tokens_out),
        (Some(9), Some(5))
    );
    assert_eq!(provenance.served_model.as_deref(), Some("g-flash-001"));
    let call = server.call();
    assert_eq!(call.path, "/v1beta/models/g-flash:generateContent");
    assert_eq!(call.headers["x-goog-api-key"], key);
    let parts = &call.body["contents"][0]["parts"];
    assert_eq!(parts[0]["inlineData"]["mimeType"], "image/png");
    assert_eq!(parts[1]["text"], "which colour?");
    assert_eq!(
        call.body["generationConfig"],
        json!({
            "maxOutputTokens": 5, "seed": 42, "topP": 0.9, "responseLogprobs": true, "logprobs": 2,
            "thinkingConfig": {"thinkingBudget": 0},
        })
    );
    assert_eq!(call.body["systemInstruction"]["parts"][0]["text"], "short");
}

#[tokio::test]
async fn what_the_filters_block_is_never_asked_again() {
    let prompt = json!({"promptFeedback": {"blockReason": "SAFETY"}});
    let candidate = content(&json!({"finishReason": "RECITATION"}));
    for (body, problem) in [
        (prompt, "the server blocked the prompt: SAFETY"),
        (candidate, "the server stopped its reply: RECITATION"),
        (json!({"candidates": []}), "the reply has no candidates"),
        (
            content(&json!({"content": {"role": "model"}, "finishReason": "STOP"})),
            "the reply has no text",
        ),
    ] {
        let server = TestServer::saying(200, body).await;
        let error = ask_one(open(&keys(&server, "")).as_ref(), "a")
            .await
            .unwrap_err();
        assert_eq!(
            (error.class, error.message.as_str()),
            (ErrorClass::Deterministic, problem)
        );
        server.call();
    }
    let server = TestServer::saying(200, content(&json!({"finishReason": "MAX_TOKENS"}))).await;
    let error = ask_one(open(&keys(&server, "")).as_ref(), "a")
        .await
        .unwrap_err();
    assert!(error.hint().unwrap().contains("thinkingBudget"));
}

/// It is asked again as if the status said so.
#[tokio::test]
async fn an_error_under_a_status_of_success_has_its_own_class() {
    let error = json!({"code": 503, "message": "The model is overloaded", "status": "UNAVAILABLE"});
    let server = TestServer::saying(200, json!({"error": error})).await;
    let error = ask_one(open_once(&keys(&server, "")).as_ref(), "a")
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Overload, "{error}");
    assert!(error.message.contains("The model is overloaded"), "{error}");
}

#[tokio::test]
async fn an_empty_text_is_an_answer_where_the_model_gives_one() {
    let candidate = json!({"content": {"parts": [{"text": ""}]}, "finishReason": "STOP"});
    let server = TestServer::saying(200, content(&candidate)).await;
    let reply = ask_one(open(&keys(&server, "")).as_ref(), "a").await;
    let text = &reply.unwrap().signals["text"];
    assert_eq!(*text, SignalValue::Text(String::new()));
}

#[tokio::test]
async fn the_most_counts_the_system_and_the_options() {
    let server = TestServer::saying(200, json!({})).await;
    let bare = open(&keys(&server, "")).most(&[request(0, "a")]);
    let further = format!("system = \"{}\"\noptions = {{topK = 3}}", "s".repeat(3000));
    let most = open(&keys(&server, &further)).most(&[request(0, "a")]);
    assert_eq!(most.tokens_in - bare.tokens_in, 3000 + 10);
}

#[tokio::test]
async fn logprobs_that_are_missing_or_refused_say_what_to_do_instead() {
    let text = content(&json!({"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}));
    let refusal = json!({"error": {
        "code": 400, "message": "Logprobs is not enabled for models/g-flash", "status": "INVALID_ARGUMENT",
    }});
    let parts = json!({"parts": [{"text": "a"}]});
    let chosen = json!({"chosenCandidates": [{"token": "a"}]});
    let uneven = content(&json!({"content": parts, "logprobsResult": chosen}));
    for (status, body, problem) in [
        (200, text, "lacks `logprobsResult`"),
        (400, refusal, "Logprobs is not enabled"),
        (200, uneven, "0 `topCandidates` for 1 `chosenCandidates`"),
    ] {
        let server = TestServer::saying(status, body).await;
        let error = ask_one(open(&keys(&server, LOGPROBS)).as_ref(), "a")
            .await
            .unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert!(error.message.contains(problem), "{error}");
        if !problem.contains("for 1") {
            assert!(
                error.hint().unwrap().contains("signals = [\"text\"]"),
                "{error:?}"
            );
        }
        server.call();
    }
}

#[tokio::test]
async fn a_wrong_key_is_400_and_stops_the_run() {
    let details =
        json!([{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]);
    let body = json!({"error": {
        "code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": details,
    }});
    let server = TestServer::saying(400, body).await;
    let error = ask_one(open(&keys(&server, "")).as_ref(), "a")
        .await
        .unwrap_err();
    assert_eq!(error.class, ErrorClass::Credentials);
}

#[tokio::test]
async fn the_body_says_when_to_ask_again() {
    let delay = json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.25s"});
    let body = json!({"error": {
        "code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED", "details": [delay],
    }});
    let server = TestServer::saying(429, body).await;
    let teacher = open(&keys(&server, ""));
    let error = ask_one(teacher.as_ref(), "a").await.unwrap_err();
    assert_eq!((error.class, server.calls().len()), (ErrorClass::Rate, 11));
    assert_eq!(
        error.retry_after,
        Some(std::time::Duration::from_millis(250))
    );
}

#[tokio::test]
async fn embeddings_come_in_the_order_of_the_texts() {
    let body = json!({"embeddings": [{"values": [1, 2]}, {"values": [3, null]}]});
    let server = TestServer::saying(200, body).await;
    let further = "use = \"embed\"\ndimensions = 2\ntask_type = \"CLASSIFICATION\"";
    let replies = ask(open(&keys(&server, further)).as_ref(), &["a", "b"])
        .await
        .unwrap();
    let first = replies[0].as_ref().unwrap();
    assert_eq!(
        first.signals["feature"],
        SignalValue::Vector(vec![1.0, 2.0])
    );
    assert!(replies[1].as_ref().unwrap_err().message.contains("NaN"));
    let call = server.call();
    assert_eq!(call.path, "/v1beta/models/g-flash:batchEmbedContents");
    assert_eq!(
        call.body["requests"][1],
        json!({
            "model": "models/g-flash", "content": {"parts": [{"text": "b"}]},
            "outputDimensionality": 2, "taskType": "CLASSIFICATION",
        })
    );
}

#[test]
fn keys_that_cannot_work_are_refused() {
    let base = "kind = \"gemini\"\nurl = \"http://127.0.0.1:1\"\nmodel = \"m\"\n";
    for (further, problem) in [
        (
            "signals = [\"logprobs\"]\ntop_logprobs = 21",
            "at most 20 tokens",
        ),
        (
            "signals = [\"prompt_logprobs\"]",
            "Gemini gives `text` and `logprobs`",
        ),
        (
            "options = {maxOutputTokens = 1}",
            "`maxOutputTokens` is written by harvest itself",
        ),
        ("use = \"embed\"\nbatch = 101", "at most 100 texts"),
    ] {
        let refusal = configure(&format!("{base}{further}")).unwrap_err();
        assert!(refusal.contains(problem), "{refusal}");
    }
}
