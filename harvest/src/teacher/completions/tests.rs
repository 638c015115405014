//! The teacher against a server on a real socket, with replies as vLLM, llama.cpp and OpenAI write them.

use schemas::record::{ScoredToken, Token, TopKPosition};

use super::super::fixture::{Server, check_page, keys_of, question};
use super::super::test_server::{configure, open_in};
use super::super::tokens::tests::scored;
use super::*;

fn section(dialect: &str, signals: &str, more: &str) -> String {
    format!("kind = \"completions\"\ndialect = \"{dialect}\"\nsignals = {signals}\n{more}")
}

fn top_k<'a>(reply: &'a Reply, signal: &str) -> &'a [TopKPosition] {
    let SignalValue::TokenTopK(top_k) = &reply.signals[signal] else {
        panic!("`{signal}` is a token top-k")
    };
    &top_k.positions
}

/// The prompt's own tokens come first, also where they are not the most probable; two ids print alike.
const VLLM: &str = r#"{"id":"cmpl-1","object":"text_completion","model":"qwen","choices":[{"index":0,"text":" x",
    "finish_reason":"length","logprobs":null,"prompt_token_ids":[1,20,30,40],"prompt_logprobs":[null,
        {"20":{"logprob":-3.5,"rank":7,"decoded_token":" a"},"5":{"logprob":-0.5,"rank":1,"decoded_token":"b"},
         "6":{"logprob":-1.5,"rank":2,"decoded_token":"b"}},
        {"5":{"logprob":-0.5,"rank":1,"decoded_token":"b"},"30":{"logprob":-1.0,"rank":2,"decoded_token":" c"}},
        {"40":{"logprob":-9999.0,"rank":99,"decoded_token":null},"5":{"logprob":-0.5,"rank":1,"decoded_token":"b"}}]}],
    "usage":{"prompt_tokens":4,"completion_tokens":1,"total_tokens":5}}"#;

#[tokio::test]
async fn vllm_scores_the_tokens_of_the_prompt_by_id() {
    let server = Server::answering(200, VLLM).await;
    let wanted = section("vllm", "[\"prompt_logprobs\"]", "top_logprobs = 2");
    let reply = server.ask(&wanted, &question("p a c d")).await.unwrap();
    assert_eq!(
        server.seen(),
        [(
            "/v1/completions".to_owned(),
            json!({"model": "m", "prompt": "p a c d", "max_tokens": 1, "prompt_logprobs": 2, "return_token_ids": true})
        )]
    );
    let [first, second, third, fourth] = top_k(&reply, "prompt_logprobs") else {
        panic!("there are four positions")
    };
    assert_eq!(
        (&first.chosen, first.entries.len(), first.remaining_mass),
        (&None, 0, 1.0)
    );
    assert_eq!(second.chosen, Some(scored(20, " a", -3.5)));
    assert_eq!(second.entries, [scored(5, "b", -0.5), scored(6, "b", -1.5)]);
    // The order of the keys says `5`; the ids of the prompt know better.
    assert_eq!(third.chosen, Some(scored(30, " c", -1.0)));
    let unlikely = Token {
        id: Some(40),
        bytes: None,
    };
    assert_eq!(
        fourth.chosen,
        Some(ScoredToken {
            token: unlikely,
            logprob: -9999.0
        })
    );
    assert_eq!(fourth.entries, [scored(5, "b", -0.5)]);
    let provenance = &reply.provenance;
    assert_eq!(
        (provenance.tokens_in, provenance.tokens_out),
        (Some(4), Some(1))
    );
    assert_eq!(provenance.served_model.as_deref(), Some("qwen"));
}

#[tokio::test]
async fn without_ids_the_rank_or_the_order_tells_the_token_of_the_prompt() {
    let server =
        Server::answering(200, VLLM.replace("\"prompt_token_ids\":[1,20,30,40],", "")).await;
    let wanted = section("vllm", "[\"prompt_logprobs\"]", "top_logprobs = 2");
    let reply = server.ask(&wanted, &question("p a c d")).await.unwrap();
    let chosen = top_k(&reply, "prompt_logprobs")
        .iter()
        .map(|position| position.chosen.clone());
    let ids: Vec<_> = chosen
        .map(|chosen| chosen.and_then(|scored| scored.token.id))
        .collect();
    assert_eq!(ids, [None, Some(20), Some(5), Some(40)]);
}

#[tokio::test]
async fn vllm_gives_generated_tokens_by_id_beside_the_prompt() {
    let body = VLLM.replace(
        "\"logprobs\":null",
        r#""logprobs":{"tokens":["token_id:7"],"token_logprobs":[-0.25],"text_offset":[0],
            "top_logprobs":[{"token_id:7":-0.25,"token_id:8":-2.0}]}"#,
    );
    let server = Server::answering(200, body).await;
    let wanted = section(
        "vllm",
        "[\"text\", \"logprobs\", \"prompt_logprobs\"]",
        "top_logprobs = 2\nmax_tokens = 3",
    );
    let reply = server.ask(&wanted, &question("p a c d")).await.unwrap();
    let sent = &server.seen()[0].1;
    assert_eq!(
        (
            &sent["logprobs"],
            &sent["return_tokens_as_token_ids"],
            &sent["max_tokens"]
        ),
        (&json!(2), &json!(true), &json!(3))
    );
    assert_eq!(reply.signals["text"], SignalValue::Text(" x".into()));
    let [generated] = top_k(&reply, "logprobs") else {
        panic!("one token was generated")
    };
    let ids: Vec<_> = generated
        .entries
        .iter()
        .map(|entry| entry.token.id)
        .collect();
    assert_eq!(ids, [Some(7), Some(8)]);
    assert_eq!(top_k(&reply, "prompt_logprobs").len(), 4);
    assert_eq!(reply.provenance.finish_reason.as_deref(), Some("length"));
}

/// Two words for `negative`, one for `positive`; prompt and word share the token 20.
#[tokio::test]
async fn vllm_scores_whole_words_after_what_they_share() {
    let choice = |index: usize, tail: &str| {
        format!(
            r#"{{"index":{index},"text":"x","prompt_logprobs":[null,{{"20":{{"logprob":-4.0,"rank":9}}}},{tail}]}}"#
        )
    };
    // Out of order.
    let body = format!(
        r#"{{"choices":[{},{},{}],"usage":{{"prompt_tokens":10,"completion_tokens":3}}}}"#,
        choice(2, r#"{"33":{"logprob":-0.75,"rank":1}}"#),
        choice(
            0,
            r#"{"31":{"logprob":-1.0,"rank":2}},{"40":{"logprob":-0.5,"rank":1}}"#
        ),
        choice(1, r#"{"32":{"logprob":-2.0,"rank":3}}"#),
    );
    let server = Server::answering(200, body).await;
    let labels = "labels = { negative = [\" bad\", \" poor\"], positive = \" good\" }";
    let wanted = section("vllm", "[\"class_logits\"]", labels);
    let reply = server.ask(&wanted, &question("It is")).await.unwrap();
    let sent = &server.seen()[0].1;
    assert_eq!(
        sent["prompt"],
        json!(["It is bad", "It is poor", "It is good"])
    );
    assert_eq!(
        (&sent["prompt_logprobs"], &sent["max_tokens"]),
        (&json!(0), &json!(1))
    );
    let SignalValue::Vector(logits) = &reply.signals["class_logits"] else {
        panic!("logits are a vector")
    };
    let negative = ((-1.5_f64).exp() + (-2.0_f64).exp()).ln() as f32;
    assert!(
        (logits[0] - negative).abs() < 1e-6 && (logits[1] + 0.75).abs() < 1e-6,
        "{logits:?}"
    );
    assert_eq!(reply.provenance.tokens_in, Some(10));
}

#[tokio::test]
async fn words_that_cannot_be_scored_fail_the_row() {
    let choice = |tail: &str| format!(r#"{{"text":"x","prompt_logprobs":[null{tail}]}}"#);
    let bad = r#",{"1":{"logprob":-1}}"#;
    let longer = r#",{"1":{"logprob":-1}},{"2":{"logprob":-1}}"#;
    let unlikely = r#",{"3":{"logprob":-9999.0}}"#;
    for (one, two, problem) in [
        (bad, longer, "the tokens of one word begin those of another"),
        (bad, bad, "the tokens of one word begin those of another"),
        (bad, unlikely, "a token of a word has no log-probability"),
    ] {
        let body = format!(r#"{{"choices":[{},{}]}}"#, choice(one), choice(two));
        let server = Server::answering(200, body).await;
        let error = server
            .ask(
                &section("vllm", "[\"class_logits\"]", ""),
                &question("It is"),
            )
            .await
            .unwrap_err();
        assert_eq!(error.message, format!("signal `class_logits`: {problem}"));
        assert!(error.advice.unwrap().contains("teacher.labels"));
        assert_eq!(
            (error.class, server.seen().len()),
            (ErrorClass::Deterministic, 1)
        );
    }
}

/// As vLLM and OpenAI answer `echo`. The map of the last position repeats a key: two ids print alike (trap 1).
const ECHO: &str = r#"{"model":"davinci-002","choices":[{"index":0,"text":"The end\u2026 of","finish_reason":"length",
    "logprobs":{"text_offset":[0,3,7,8],"tokens":["The"," end","bytes:\\xe2\\x80"," of"],
    "token_logprobs":[null,-2.5,-0.5,-1.0],
    "top_logprobs":[null,{" end":-2.5," a":-0.75},{"bytes:\\xe2\\x80":-0.5,"x":-3.0,"x":-3.5},{" of":-1.0}]}}],
    "usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#;

#[tokio::test]
async fn echo_gives_the_prompt_without_what_was_generated() {
    let server = Server::answering(200, ECHO).await;
    let wanted = section("openai", "[\"prompt_logprobs\"]", "top_logprobs = 3");
    let reply = server
        .ask(&wanted, &question("The end\u{2026}"))
        .await
        .unwrap();
    assert_eq!(
        server.seen()[0].1,
        json!({"model": "m", "prompt": "The end\u{2026}", "max_tokens": 1, "echo": true, "logprobs": 3})
    );
    let [first, second, third] = top_k(&reply, "prompt_logprobs") else {
        panic!("there are three positions")
    };
    assert_eq!((&first.chosen, first.remaining_mass), (&None, 1.0));
    let text = |scored: &ScoredToken| (scored.token.bytes.clone().unwrap(), scored.logprob);
    assert_eq!(
        second.chosen.as_ref().map(text),
        Some((b" end".to_vec(), -2.5))
    );
    let entries: Vec<_> = third.entries.iter().map(text).collect();
    assert_eq!(
        entries,
        [
            (vec![0xe2, 0x80], -0.5),
            (b"x".to_vec(), -3.0),
            (b"x".to_vec(), -3.5)
        ]
    );
}

#[tokio::test]
async fn echo_scores_words_by_the_text_of_tokens() {
    let choice = |word: &str, logprob: f32| {
        format!(
            r#"{{"text":"It is{word}!","logprobs":{{"tokens":["It"," is","{word}","!"],
            "token_logprobs":[null,-1.0,{logprob},-9.0],"top_logprobs":null}}}}"#
        )
    };
    let body = format!(
        r#"{{"choices":[{},{}],"usage":{{"completion_tokens":2}}}}"#,
        choice(" negative", -0.5),
        choice(" positive", -2.0)
    );
    let server = Server::answering(200, body).await;
    let wanted = section("openai", "[\"class_logits\"]", "");
    let reply = server.ask(&wanted, &question("It is")).await.unwrap();
    assert_eq!(
        reply.signals["class_logits"],
        SignalValue::Vector(vec![-0.5, -2.0])
    );
    let sent = &server.seen()[0].1;
    assert_eq!(sent["prompt"], json!(["It is negative", "It is positive"]));
    assert_eq!(
        (&sent["logprobs"], &sent["echo"]),
        (&json!(1), &json!(true))
    );
}

const LLAMA_CPP: &str = r#"{"index":0,"content":" good","tokens":[],"id_slot":0,"stop":true,"model":"tiny.gguf",
    "tokens_predicted":1,"tokens_evaluated":6,"prompt":"It is","stop_type":"limit","truncated":false,
    "completion_probabilities":[{"id":9,"token":" good","bytes":[32,103,111,111,100],"logprob":-0.5,"top_logprobs":[
        {"id":9,"token":" good","bytes":[32,103,111,111,100],"logprob":-0.5},
        {"id":10,"token":" bad","bytes":[32,98,97,100],"logprob":-1.5}]}]}"#;

#[tokio::test]
async fn llama_cpp_gives_what_follows_the_prompt() {
    let server = Server::answering(200, LLAMA_CPP).await;
    let labels = "max_tokens = 4\nlabels = { negative = \"bad\", positive = \"good\" }";
    let wanted = section(
        "llamacpp",
        "[\"text\", \"logprobs\", \"class_logits\"]",
        labels,
    );
    let mut second = question("It is");
    second.draw = 1;
    let reply = server
        .ask(&format!("seed = 7\n{wanted}"), &second)
        .await
        .unwrap();
    assert_eq!(
        server.seen(),
        [(
            "/v1/completion".to_owned(),
            json!({"model": "m", "prompt": "It is", "n_predict": 4, "n_probs": 20, "seed": 8})
        )]
    );
    assert_eq!(reply.signals["text"], SignalValue::Text(" good".into()));
    assert_eq!(
        top_k(&reply, "logprobs")[0].entries,
        [scored(9, " good", -0.5), scored(10, " bad", -1.5)]
    );
    assert_eq!(
        reply.signals["class_logits"],
        SignalValue::Vector(vec![-1.5, -0.5])
    );
    let provenance = &reply.provenance;
    assert_eq!(provenance.finish_reason.as_deref(), Some("limit"));
    assert_eq!(
        (provenance.tokens_in, provenance.tokens_out),
        (Some(6), Some(1))
    );
}

/// Trap 5, in every dialect: a server that ignores what was asked for answers 200.
#[tokio::test]
async fn an_ignored_wish_is_named_with_what_to_do() {
    let plain = r#"{"choices":[{"text":" x","logprobs":null}],"usage":{"completion_tokens":1}}"#;
    let in_chat_shape = r#"{"choices":[{"text":"p x","logprobs":{"content":[{"id":1,"token":" x","logprob":-1,
        "top_logprobs":[]}]}}]}"#;
    let own_only = r#"{"choices":[{"text":" x","logprobs":{"tokens":[" x"],"token_logprobs":[-1],"top_logprobs":null}}]}"#;
    let without = r#"{"content":" x","tokens_predicted":1}"#;
    for (dialect, signal, body, missing, advice) in [
        (
            "vllm",
            "prompt_logprobs",
            plain,
            "`prompt_logprobs`",
            "teacher.dialect",
        ),
        (
            "openai",
            "prompt_logprobs",
            plain,
            "the echoed prompt",
            "teacher.dialect",
        ),
        (
            "openai",
            "prompt_logprobs",
            in_chat_shape,
            "`tokens` and `token_logprobs`",
            "llamacpp",
        ),
        (
            "openai",
            "logprobs",
            plain,
            "`logprobs`",
            "ignored `logprobs`",
        ),
        (
            "vllm",
            "logprobs",
            own_only,
            "`top_logprobs`",
            "teacher.signals",
        ),
        (
            "llamacpp",
            "logprobs",
            without,
            "`completion_probabilities`",
            "update llama.cpp",
        ),
    ] {
        let server = Server::answering(200, body).await;
        let wanted = section(dialect, &format!("[\"{signal}\"]"), "");
        let error = server.ask(&wanted, &question("p")).await.unwrap_err();
        assert_eq!(
            error.message,
            format!("the reply lacks {missing}, which the signal `{signal}` is made of")
        );
        assert_eq!(
            (error.class, server.seen().len()),
            (ErrorClass::Deterministic, 1)
        );
        assert!(error.advice.unwrap().contains(advice), "{dialect} {signal}");
    }
}

#[tokio::test]
async fn unusable_replies_are_deterministic() {
    let listed = |tokens: &str, own: &str| {
        format!(
            r#"{{"choices":[{{"text":"x","logprobs":{{"tokens":{tokens},"token_logprobs":{own}}}}}]}}"#
        )
    };
    for (dialect, body, problem) in [
        (
            "vllm",
            r#"{"choices":[]}"#.to_owned(),
            "0 choices for 1 prompts",
        ),
        (
            "vllm",
            r#"{"choices":[{"index":1}]}"#.to_owned(),
            "index 1 for 1 prompts",
        ),
        (
            "vllm",
            r#"{"choices":[{},{"index":0}]}"#.to_owned(),
            "two choices with index 0",
        ),
        (
            "vllm",
            r#"{"choices":[{"finish_reason":"content_filter"}]}"#.to_owned(),
            "content filter",
        ),
        (
            "vllm",
            listed("[\"a\",\"b\"]", "[-1]"),
            "2 tokens, 1 log-probabilities",
        ),
        (
            "vllm",
            listed("[\"a\"]", "[0.5]"),
            "a log-probability is 0.5",
        ),
        (
            "llamacpp",
            LLAMA_CPP.replace("\"truncated\":false", "\"truncated\":true"),
            "cut the text",
        ),
        (
            "llamacpp",
            LLAMA_CPP.replace("\"tokens_predicted\":1", "\"tokens_predicted\":2"),
            "1 positions for 2 tokens",
        ),
        ("llamacpp", VLLM.to_owned(), "no completion of llama.cpp"),
    ] {
        let server = Server::answering(200, body).await;
        let wanted = section(dialect, "[\"logprobs\"]", "");
        let error = server.ask(&wanted, &question("p")).await.unwrap_err();
        assert!(error.message.contains(problem), "{error}");
        assert_eq!(
            (error.class, server.seen().len()),
            (ErrorClass::Deterministic, 1)
        );
    }
}

/// Trap 4: llama.cpp's way to say that it does not echo, and a context that is too short.
#[tokio::test]
async fn refusals_are_asked_once() {
    for body in [
        r#"{"error":{"code":400,"message":"Only no echo is supported","type":"invalid_request_error"}}"#,
        r#"{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}"#,
    ] {
        let server = Server::answering(400, body).await;
        let wanted = section("openai", "[\"prompt_logprobs\"]", "");
        let error = server.ask(&wanted, &question("p")).await.unwrap_err();
        assert_eq!(
            (error.class, server.seen().len()),
            (ErrorClass::Deterministic, 1)
        );
    }
}

#[test]
fn what_a_dialect_cannot_give_is_refused_with_what_it_can() {
    for (dialect, signals, more, problem) in [
        (
            "llamacpp",
            "[\"prompt_logprobs\"]",
            "",
            "generated tokens only",
        ),
        (
            "vllm",
            "[\"class_logits\", \"text\"]",
            "",
            "a second teacher",
        ),
        (
            "openai",
            "[\"prompt_logprobs\", \"text\"]",
            "",
            "a second teacher",
        ),
        (
            "vllm",
            "[\"class_logits\"]",
            "missing_class = \"bound\"",
            "none is missing",
        ),
        (
            "vllm",
            "[\"class_logits\"]",
            "labels = { negative = \"a\", positive = \"a\" }",
            "no token tells them apart",
        ),
        (
            "tgi",
            "[\"text\"]",
            "",
            "expected one of `vllm`, `llamacpp`, `openai`",
        ),
    ] {
        let section = section(
            dialect,
            signals,
            &format!("{more}\nurl = \"http://h\"\nmodel = \"m\""),
        );
        let error = configure(&section).unwrap_err();
        assert!(error.contains(problem), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let pictures = section(
        "vllm",
        "[\"text\"]",
        "image_field = \"p\"\nurl = \"http://127.0.0.1:9\"\nmodel = \"m\"",
    );
    let error = open_in(folder.path(), &pictures).unwrap_err();
    assert!(error.message.contains("takes no pictures"));
}

#[test]
fn the_most_counts_every_word() {
    let folder = tempfile::tempdir().unwrap();
    let more = "url = \"http://127.0.0.1:9\"\nmodel = \"m\"\nlabels = { negative = \"ab\", positive = \"c\" }";
    let teacher = open_in(folder.path(), &section("vllm", "[\"class_logits\"]", more)).unwrap();
    let most = teacher.most(&[question("12345678")]);
    assert_eq!(
        (most.requests, most.tokens_in, most.tokens_out),
        (1, 2 * (8 + 64) + 3, 2)
    );
}

#[test]
fn the_page_describes_every_key_and_its_examples_are_read() {
    let own = keys_of::<CompletionsConfig>();
    let own = own.iter().map(String::as_str);
    let keys: Vec<&str> = GenerationConfig::KEYS.into_iter().chain(own).collect();
    check_page(
        include_str!("../../../../docs/teachers/completions.md"),
        &keys,
    );
}

proptest::proptest! {
    #[test]
    fn no_reply_makes_a_parser_panic(body in ".{0,200}", num_prompts in 1_usize..3) {
        let inside = format!(
            r#"{{"content":"","completion_probabilities":[{body}],"choices":[{{"text":"p","logprobs":{body},
            "prompt_logprobs":[{body}]}}]}}"#
        );
        for body in [body, inside] {
            if let Ok(mut reply) = LlamaCppReply::parse(body.as_bytes()) {
                let _ = reply.top_k(3, "logprobs");
            }
            let prompts = vec!["p".to_owned(); num_prompts];
            if let Ok(reply) = CompletionsReply::parse(body.as_bytes(), num_prompts) {
                for (choice, num_generated) in reply.choices.iter().zip(reply.num_generated(&prompts)) {
                    let _ = choice.generated(3, "logprobs");
                    let _ = choice.echoed("p", num_generated, 3, "prompt_logprobs");
                    let _ = choice.scored_prompt(3, "prompt_logprobs");
                }
            }
        }
    }
}
