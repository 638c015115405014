//! The teacher against a server on a real socket, with replies as OpenAI, vLLM and llama.cpp write them.

use schemas::record::{TokenTopK, TopKPosition};

use super::super::fixture::{Server, check_page, keys_of, question};
use super::super::media::tests::RED_PIXEL;
use super::super::test_server::{configure, open_in};
use super::super::tokens::tests::scored;
use super::super::{ErrorClass, OfferKind, ask_alone};
use super::*;

const OPENAI: &str = r#"{"id":"c","object":"chat.completion","model":"gpt-4o-2024","system_fingerprint":"fp_1",
    "choices":[{"index":0,"message":{"role":"assistant","content":"Yes.","refusal":null},"finish_reason":"stop",
    "logprobs":{"refusal":null,"content":[
        {"token":"Yes","logprob":-0.25,"bytes":[89,101,115],"top_logprobs":[
            {"token":"Yes","logprob":-0.25,"bytes":[89,101,115]},{"token":"No","logprob":-2.0,"bytes":[78,111]}]},
        {"token":"\\xe2","logprob":-9999.0,"bytes":[226],"top_logprobs":[
            {"token":".","logprob":-0.5,"bytes":[46]},{"token":"!","logprob":-9999.0,"bytes":[33]}]}]}}],
    "usage":{"prompt_tokens":12,"completion_tokens":2,"total_tokens":14}}"#;

const CHAT: &str = "kind = \"chat\"";

fn with(more: &str) -> String {
    format!("{CHAT}\n{more}")
}

const SCORED: &str = "signals = [\"text\", \"logprobs\", \"class_logits\"]\ntop_logprobs = 5\n\
    labels = { negative = \"No\", positive = [\"Yes\", \"yes\"] }";

#[tokio::test]
async fn all_signals_come_from_one_reply() {
    let server = Server::answering(200, OPENAI).await;
    let reply = server.ask(&with(SCORED), &question("Good?")).await.unwrap();
    assert_eq!(reply.signals["text"], SignalValue::Text("Yes.".into()));
    assert_eq!(
        reply.signals["class_logits"],
        SignalValue::Vector(vec![-2.0, -0.25])
    );
    let SignalValue::TokenTopK(top_k) = &reply.signals["logprobs"] else {
        panic!("it is a token top-k")
    };
    let [first, second] = &top_k.positions[..] else {
        panic!("there are two positions")
    };
    let bytes = |scored: &schemas::record::ScoredToken| scored.token.bytes.clone().unwrap();
    assert_eq!(first.entries.len(), 2);
    assert_eq!(bytes(&first.entries[1]), b"No");
    assert!(first.entries.iter().all(|entry| entry.token.id.is_none()));
    let left = 1.0 - (-0.25_f32).exp() - (-2.0_f32).exp();
    assert!((first.remaining_mass - left).abs() < 1e-6);
    // Half a character, which is very unlikely; what is as unlikely is no entry.
    let chosen = second.chosen.as_ref().unwrap();
    assert_eq!((bytes(chosen), chosen.logprob), (vec![226], -9999.0));
    assert_eq!(second.entries.len(), 1);

    let provenance = &reply.provenance;
    assert_eq!(provenance.served_model.as_deref(), Some("gpt-4o-2024"));
    assert_eq!(provenance.fingerprint.as_deref(), Some("fp_1"));
    assert_eq!(provenance.finish_reason.as_deref(), Some("stop"));
    assert_eq!(
        (provenance.tokens_in, provenance.tokens_out),
        (Some(12), Some(2))
    );
    assert_eq!(provenance.tries, 1);
}

#[tokio::test]
async fn what_is_configured_is_sent_and_draws_differ_by_their_seed() {
    let server = Server::answering(200, OPENAI).await;
    let section = with(&format!(
        "{SCORED}\nsystem = \"Be brief.\"\nmax_tokens = 7\nmax_tokens_field = \"max_completion_tokens\"\n\
         temperature = 0.5\ntop_p = 0.75\nseed = 40\noptions = {{ top_k = 3, return_tokens_as_token_ids = false }}"
    ));
    let mut second = question("Good?");
    second.draw = 2;
    server.ask(&section, &second).await.unwrap();
    server.ask(CHAT, &question("Good?")).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].0, "/v1/chat/completions");
    assert_eq!(
        seen[0].1,
        json!({
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Good?"}],
            "max_completion_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.75,
            "seed": 42,
            "logprobs": true,
            "top_logprobs": 5,
            "top_k": 3,
            "return_tokens_as_token_ids": false,
        })
    );
    assert_eq!(
        seen[1].1,
        json!({
            "model": "m",
            "messages": [{"role": "user", "content": "Good?"}],
            "max_tokens": 1024,
        })
    );
}

#[tokio::test]
async fn a_picture_goes_as_a_data_uri_by_its_content() {
    let server = Server::answering(200, OPENAI).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("red.jpg"), RED_PIXEL).unwrap();
    let section = with(&format!("url = \"{}\"\nmodel = \"m\"", server.url()));
    let teacher = open_in(folder.path(), &section).unwrap();
    let mut request = question("What is it?");
    request.image = Some("red.jpg".into());
    ask_alone(teacher.as_ref(), &request).await.unwrap();
    let content = &server.seen()[0].1["messages"][0]["content"];
    assert_eq!(content[0], json!({"type": "text", "text": "What is it?"}));
    let url = content[1]["image_url"]["url"].as_str().unwrap();
    assert!(
        url.starts_with("data:image/png;base64,iVBORw0KGgo"),
        "{url}"
    );
    assert!(teacher.most(std::slice::from_ref(&request)).tokens_in > 16_384);

    request.image = Some("../red.jpg".into());
    let error = ask_alone(teacher.as_ref(), &request).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic);
    assert_eq!(server.seen().len(), 1, "a refused picture costs no request");
}

#[tokio::test]
async fn class_logits_alone_ask_for_one_token() {
    let cut = OPENAI
        .replace("\"stop\"", "\"length\"")
        .replace("\"Yes.\"", "null");
    let server = Server::answering(200, cut).await;
    let section =
        with("signals = [\"class_logits\"]\nlabels = { negative = \"No\", positive = \"Yes\" }");
    let reply = server.ask(&section, &question("Good?")).await.unwrap();
    assert_eq!(
        reply.signals,
        BTreeMap::from([(
            "class_logits".to_owned(),
            SignalValue::Vector(vec![-2.0, -0.25])
        )])
    );
    let sent = &server.seen()[0].1;
    assert_eq!(
        (&sent["max_tokens"], &sent["top_logprobs"]),
        (&json!(1), &json!(20))
    );
}

/// Trap 1: two ids that print alike are two tokens, in the value and in the mass of a class.
#[tokio::test]
async fn llama_cpp_gives_ids_and_tokens_that_print_alike_stay_apart() {
    let body = r#"{"choices":[{"finish_reason":"length","index":0,"message":{"role":"assistant","content":"Yes"},
        "logprobs":{"content":[{"id":5,"token":"Yes","bytes":[89,101,115],"logprob":-1.0,"top_logprobs":[
            {"id":5,"token":"Yes","bytes":[89,101,115],"logprob":-1.0},
            {"id":905,"token":"Yes","bytes":[89,101,115],"logprob":-1.5},
            {"id":7,"token":"No","bytes":[78,111],"logprob":-2.0},
            {"id":8,"token":"","bytes":[],"logprob":-3.4028234663852886e38}]}]}}],
        "created":1,"model":"tiny.gguf","system_fingerprint":"b6117-x","object":"chat.completion",
        "usage":{"completion_tokens":1,"prompt_tokens":9,"total_tokens":10},"timings":{"prompt_n":9}}"#;
    let server = Server::answering(200, body).await;
    let reply = server.ask(&with(SCORED), &question("Good?")).await.unwrap();
    let entries = vec![
        scored(5, "Yes", -1.0),
        scored(905, "Yes", -1.5),
        scored(7, "No", -2.0),
    ];
    let mass: f64 = [-1.0_f64, -1.5, -2.0]
        .iter()
        .map(|logprob| logprob.exp())
        .sum();
    let expected = TokenTopK {
        positions: vec![TopKPosition {
            chosen: Some(scored(5, "Yes", -1.0)),
            remaining_mass: (1.0 - mass) as f32,
            entries,
        }],
    };
    assert_eq!(reply.signals["logprobs"], SignalValue::TokenTopK(expected));
    let SignalValue::Vector(logits) = &reply.signals["class_logits"] else {
        panic!("logits are a vector")
    };
    let yes = ((-1.0_f64).exp() + (-1.5_f64).exp()).ln() as f32;
    assert_eq!(logits, &[-2.0, yes]);
}

/// Trap 2: a cached run differs by a millionth; what is stored differs by as much and never fails.
#[tokio::test]
async fn a_millionth_more_or_less_changes_no_more() {
    let certain = |logprob: f64| {
        format!(
            r#"{{"choices":[{{"message":{{"content":"Yes"}},"logprobs":{{"content":[{{"token":"Yes","logprob":{logprob},
            "top_logprobs":[{{"token":"Yes","logprob":{logprob}}},{{"token":"No","logprob":-14.0}}]}}]}}}}]}}"#
        )
    };
    let mut logits = Vec::new();
    for logprob in [-0.000_001, 0.0, 0.000_001] {
        let server = Server::answering(200, certain(logprob)).await;
        let reply = server.ask(&with(SCORED), &question("Good?")).await.unwrap();
        let SignalValue::TokenTopK(top_k) = &reply.signals["logprobs"] else {
            panic!("it is a token top-k")
        };
        assert!((0.0..2e-6).contains(&top_k.positions[0].remaining_mass));
        let SignalValue::Vector(values) = &reply.signals["class_logits"] else {
            panic!("logits are a vector")
        };
        logits.push(values[1]);
    }
    assert!(logits.iter().all(|logit| logit.abs() <= 2e-6), "{logits:?}");
}

async fn refused(section: &str, status: u16, body: &str) -> (TeacherError, usize) {
    let server = Server::answering(status, body).await;
    let error = server.ask(section, &question("Good?")).await.unwrap_err();
    (error, server.seen().len())
}

/// Trap 4: these fail the same way again, so each is asked once.
#[tokio::test]
async fn deterministic_refusals_are_asked_once() {
    for (status, body) in [
        (
            400,
            r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#,
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#,
        ),
        (
            500,
            r#"{"error":{"message":"too long","type":"exceed_context_size_error"}}"#,
        ),
        (
            501,
            r#"{"error":{"code":501,"message":"no images","type":"not_supported_error"}}"#,
        ),
        (
            422,
            r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#,
        ),
    ] {
        let (error, num_requests) = refused(CHAT, status, body).await;
        assert_eq!(
            (error.class, num_requests),
            (ErrorClass::Deterministic, 1),
            "{body}"
        );
        if body.contains("too long") {
            assert!(error.advice.unwrap().contains("context"), "{body}");
        }
    }
}

/// Trap 5: a server that ignores `logprobs` answers 200 all the same.
#[tokio::test]
async fn a_missing_signal_is_named_with_what_to_do() {
    let reply = |more: &str| {
        format!(r#"{{"choices":[{{"finish_reason":"stop","message":{{"content":"Yes"}}{more}}}]}}"#)
    };
    for (more, missing) in [
        ("", "`logprobs`"),
        (r#","logprobs":null"#, "`logprobs`"),
        (r#","logprobs":{"content":null}"#, "`logprobs`"),
        (
            r#","logprobs":{"tokens":["Yes"],"token_logprobs":[0]}"#,
            "`logprobs`",
        ),
        (
            r#","logprobs":{"content":[{"token":"Yes","logprob":-1}]}"#,
            "`top_logprobs`",
        ),
    ] {
        let (error, num_requests) =
            refused(&with("signals = [\"logprobs\"]"), 200, &reply(more)).await;
        assert_eq!(
            error.message,
            format!("the reply lacks {missing}, which the signal `logprobs` is made of")
        );
        assert_eq!((error.class, num_requests), (ErrorClass::Deterministic, 1));
        assert!(error.advice.unwrap().contains("teacher.signals"));
    }
    // An empty reply has no position, which is no missing signal.
    let server = Server::answering(200, reply(r#","logprobs":{"content":[]}"#)).await;
    let found = server
        .ask(&with("signals = [\"logprobs\"]"), &question(""))
        .await
        .unwrap();
    assert_eq!(
        found.signals["logprobs"],
        SignalValue::TokenTopK(TokenTopK::default())
    );
    let (error, _) = refused(
        &with("signals = [\"class_logits\"]"),
        200,
        &reply(r#","logprobs":{"content":[]}"#),
    )
    .await;
    assert!(error.message.contains("a first token"), "{error}");
}

#[tokio::test]
async fn content_comes_as_text_as_parts_or_not_at_all() {
    let reply = |choice: &str| format!(r#"{{"choices":[{choice}]}}"#);
    for (choice, expected) in [
        (r#"{"message":{"content":"a"}}"#, Ok("a")),
        (
            r#"{"message":{"content":""},"finish_reason":"stop"}"#,
            Ok(""),
        ),
        (
            r#"{"message":{"content":[{"type":"text","text":"a"},{"type":"image"},{"type":"text","text":"b"}]}}"#,
            Ok("ab"),
        ),
        (
            r#"{"message":{"content":"a"},"finish_reason":"length"}"#,
            Ok("a"),
        ),
        (
            r#"{"message":{"content":null},"finish_reason":"stop"}"#,
            Err("the reply has no text"),
        ),
        (
            r#"{"message":{"content":[]},"finish_reason":"stop"}"#,
            Err("the reply has no text"),
        ),
        (
            r#"{"message":{"content":""},"finish_reason":"length"}"#,
            Err("ended before it had any text"),
        ),
        (
            r#"{"message":{"content":null,"refusal":"I can't."}}"#,
            Err("refused to answer: I can't."),
        ),
        (
            r#"{"message":{"content":"a"},"finish_reason":"content_filter"}"#,
            Err("content filter stopped the reply"),
        ),
        ("", Err("the reply has no choice")),
    ] {
        let server = Server::answering(200, reply(choice)).await;
        match (server.ask(CHAT, &question("?")).await, expected) {
            (Ok(reply), Ok(text)) => {
                assert_eq!(reply.signals["text"], SignalValue::Text(text.into()));
            }
            (Err(error), Err(problem)) => {
                assert!(error.message.contains(problem), "{error}");
                assert_eq!(error.class, ErrorClass::Deterministic);
                assert_eq!(server.seen().len(), 1);
            }
            (found, expected) => panic!("{choice}: {found:?}, expected {expected:?}"),
        }
    }
}

/// Trap 6: a whole vocabulary at one position is read, and stored in less than a third of its JSON.
#[test]
fn a_full_vocabulary_is_packed() {
    let num_tokens = 32_000;
    let logprob = -(f64::from(num_tokens)).ln();
    let entries = (0..num_tokens)
        .map(|id| json!({"id": id, "token": format!("t{id}"), "bytes": null, "logprob": logprob}));
    let entries: Vec<Value> = entries.collect();
    let body = json!({"choices": [{"message": {"content": "t0"}, "logprobs": {"content": [
        {"id": 0, "token": "t0", "bytes": null, "logprob": logprob, "top_logprobs": entries}]}}]});
    let body = serde_json::to_vec(&body).unwrap();
    let top_k = ChatReply::parse(&body)
        .unwrap()
        .top_k(num_tokens, "logprobs")
        .unwrap();
    assert_eq!(top_k.positions[0].entries.len(), num_tokens as usize);
    assert!(top_k.positions[0].remaining_mass < 1e-3);
    let packed = top_k.to_bytes();
    assert!(
        packed.len() * 3 < body.len(),
        "{} of {}",
        packed.len(),
        body.len()
    );
    assert_eq!(TokenTopK::from_bytes(&packed), Some(top_k));
}

#[test]
fn identity_holds_what_changes_replies_and_no_address() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = open_in(
        folder.path(),
        &with(&format!(
            "url = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\nseed = 1\n{SCORED}"
        )),
    )
    .unwrap();
    let description = teacher.describe();
    assert_eq!(
        description.identity.settings,
        json!({
            "signals": ["text", "logprobs", "class_logits"], "top_logprobs": 5, "max_tokens": 1024,
            "temperature": null, "top_p": null, "seed": 1, "options": {}, "system": null,
            "labels": {"negative": ["No"], "positive": ["Yes", "yes"]}, "missing_class": "fail",
        })
    );
    let kinds: Vec<OfferKind> = description.offers.iter().map(|offer| offer.kind).collect();
    assert_eq!(
        kinds,
        [
            OfferKind::Text,
            OfferKind::TokenTopK { k: 5 },
            OfferKind::ClassLogits { width: 2 }
        ]
    );
    let most = teacher.most(&[question("12345678")]);
    assert_eq!((most.tokens_in, most.tokens_out), (8 + 64, 1024));
}

#[test]
fn configurations_that_cannot_work_are_refused_before_anything_is_sent() {
    for (more, problem) in [
        ("signals = []", "at least one signal"),
        ("signals = [\"text\", \"text\"]", "none of them twice"),
        (
            "signals = [\"prompt_logprobs\"]",
            "the kind `completions` does",
        ),
        ("signals = [\"entropy\"]", "expected one of `text`"),
        ("temperature = -1.0", "expected a number from 0"),
        ("top_p = 0.0", "above 0"),
        (
            "options = { stream = true }",
            "`stream` is not among the options",
        ),
        (
            "labels = { negative = \"no\", positive = \"not\" }",
            "begins `not`",
        ),
        (
            "labels = { negative = \"a\", positive = \" a\" }",
            "no token tells them apart",
        ),
        ("top_logprobs = 0", "nonzero"),
        ("top_k = 1", "unknown field `top_k`"),
    ] {
        let section = with(&format!("url = \"http://h/v1\"\nmodel = \"m\"\n{more}"));
        let error = configure(&section).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn the_page_describes_every_key_and_its_examples_are_read() {
    let own = keys_of::<ChatConfig>();
    let own = own.iter().map(String::as_str);
    let keys: Vec<&str> = GenerationConfig::KEYS.into_iter().chain(own).collect();
    check_page(include_str!("../../../../docs/teachers/chat.md"), &keys);
}

proptest::proptest! {
    #[test]
    fn no_reply_makes_the_parser_panic(body in ".{0,200}") {
        let inside = format!(r#"{{"choices":[{{"message":{body},"logprobs":{{"content":[{body}]}}}}]}}"#);
        for body in [body, inside] {
            if let Ok(mut reply) = ChatReply::parse(body.as_bytes()) {
                let _ = (reply.text(), reply.top_k(3, "logprobs"));
            }
        }
    }
}
