use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use schemas::SignalValue;
use serde_json::{Value, json};

use super::super::test_server::{Kept, TestServer, answer, open, request};
use super::*;

fn several(teachers: [(&str, String); 2]) -> Result<Several, TeacherError> {
    let opened = teachers.map(|(name, keys)| (name.to_owned(), open(&keys)));
    Several::new(opened.into())
}

#[test]
fn two_signals_of_one_name_are_refused() {
    let teacher = |signal: &str| {
        format!(
            "kind = \"completions\"\ndialect = \"vllm\"\nurl = \"http://127.0.0.1:1\"\nmodel = \"m\"\n\
             signals = [\"{signal}\"]"
        )
    };
    let pair = |second| {
        [
            ("x", teacher("prompt_logprobs")),
            (second, teacher("logprobs")),
        ]
    };
    let refusal = several(pair("x_prompt")).unwrap_err();
    assert_eq!(
        refusal.message,
        "the teachers `x` and `x_prompt` both give a signal `x_prompt_logprobs`"
    );
    several(pair("y")).unwrap();
}

#[tokio::test]
async fn teachers_that_ask_one_generator_find_their_own_pictures() {
    // The picture of a prompt is as many pixels wide as the prompt has bytes.
    let painter = TestServer::start(|call| {
        let width = call.body["prompt"].as_str().unwrap().len() as u32;
        let mut file = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(width, 1)
            .write_to(&mut file, image::ImageFormat::Png)
            .unwrap();
        let picture = BASE64.encode(file.into_inner());
        answer(200, json!({"data": [{"b64_json": picture}]}))
    })
    .await;
    let encoder = TestServer::start(|call| {
        let uri = call.body["input"].as_str().unwrap();
        let file = BASE64.decode(uri.split_once(',').unwrap().1).unwrap();
        let width = image::load_from_memory(&file).unwrap().width();
        answer(
            200,
            json!({"data": [{"embedding": [width]}], "model": "clip"}),
        )
    })
    .await;
    let refusing = TestServer::saying(400, json!({"error": {"message": "restarting"}})).await;
    let teacher = |encoder: &TestServer| {
        format!(
            "kind = \"images\"\napi = \"openai\"\nurl = \"{}\"\nmodel = \"painter\"\n\
             [teacher.encoder]\nkind = \"embeddings\"\ninput = \"data-uri\"\nmodel = \"clip\"\nurl = \"{}\"",
            painter.url, encoder.url
        )
    };
    let mut asked = request(0, "white");
    asked.further.push(("black cat".to_owned(), None));
    let asked = std::slice::from_ref(&asked);
    let paid = Kept::default();
    let failing = several([("a", teacher(&encoder)), ("b", teacher(&refusing))]).unwrap();
    let failed = failing.query(asked, &paid).await.unwrap();
    assert!(failed.replies[0].is_err());

    let whole = several([("a", teacher(&encoder)), ("b", teacher(&encoder))]).unwrap();
    let mut replies = whole.query(asked, &paid).await.unwrap().replies;
    let signals = replies.remove(0).unwrap().signals;
    assert_eq!(signals["a_feature"], SignalValue::Vector(vec![5.0]));
    assert_eq!(signals["b_feature"], SignalValue::Vector(vec![9.0]));
    let prompts: Vec<Value> = painter
        .calls()
        .into_iter()
        .map(|mut call| call.body["prompt"].take())
        .collect();
    assert_eq!(
        prompts.len(),
        2,
        "each picture is paid for once: {prompts:?}"
    );
    assert_eq!((encoder.calls().len(), refusing.calls().len()), (2, 1));
}
