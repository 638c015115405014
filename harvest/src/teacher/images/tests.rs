use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::super::NotKept;
use super::super::media::tests::RED_PIXEL;
use super::super::test_server::{
    Kept, TestServer, answer, configure, open, open_in, open_watched, request,
};
use super::*;
use crate::reporter::Watch;

const BUILTIN: &str = "[teacher.encoder]\nkind = \"builtin\"\ngrid = 1\ncolour = true\n";
const RED: [f32; 3] = [1.0, 0.0, 0.0];

fn keys(server: &TestServer, further: &str) -> String {
    format!(
        "kind = \"images\"\nurl = \"{}/v1\"\nmodel = \"painter\"\n{further}",
        server.url
    )
}

async fn ask(teacher: &dyn Teacher, draw: u32, paid: &dyn Paid) -> Result<Reply, TeacherError> {
    let mut request = request(0, "a red pixel");
    request.draw = draw;
    only(teacher, &request, paid).await
}

fn vector(reply: &Reply) -> &[f32] {
    match &reply.signals["feature"] {
        SignalValue::Vector(values) => values,
        other => panic!("{other:?}"),
    }
}

fn b64() -> Response {
    let picture = json!({"b64_json": BASE64.encode(RED_PIXEL), "revised_prompt": "one red pixel"});
    let usage = json!({"input_tokens": 3, "output_tokens": 100});
    answer(
        200,
        json!({"created": 1, "data": [picture], "usage": usage}),
    )
}

#[tokio::test]
async fn a_text_becomes_a_picture_and_a_feature() {
    let server = TestServer::start(|_| b64()).await;
    let further = format!(
        "api = \"openai\"\nsize = \"256x256\"\nseed = 40\nkeep_image = true\nrevised_prompt = true\n\
         options = {{quality = \"low\"}}\n{BUILTIN}"
    );
    let teacher = open(&keys(&server, &further));
    let reply = ask(teacher.as_ref(), 2, &NotKept).await.unwrap();
    assert_eq!(vector(&reply), RED);
    assert_eq!(
        reply.signals["image"],
        SignalValue::Image(RED_PIXEL.to_vec())
    );
    assert_eq!(
        reply.signals["revised_prompt"],
        SignalValue::Text("one red pixel".into())
    );
    assert_eq!(reply.signals.len(), 3);
    let provenance = &reply.provenance;
    assert_eq!(
        (provenance.tokens_in, provenance.tokens_out),
        (Some(3), Some(100))
    );
    assert_eq!(provenance.tries, 1);
    let names: Vec<_> = teacher
        .describe()
        .offers
        .iter()
        .map(|offer| &offer.name)
        .collect();
    assert_eq!(names, ["feature", "image", "revised_prompt"]);
    let identity = &teacher.describe().identity;
    assert_eq!(
        identity.settings["encoder"],
        json!({"kind": "builtin", "grid": 1, "colour": true})
    );
    assert_eq!(identity.settings["generator"]["size"], "256x256");
    let call = server.call();
    assert_eq!(call.path, "/v1/images/generations");
    assert_eq!(
        call.body,
        json!({
            "model": "painter", "prompt": "a red pixel", "n": 1, "size": "256x256", "seed": 42, "quality": "low",
        })
    );
}

#[tokio::test]
async fn stable_diffusion_servers_are_asked_in_their_protocol() {
    let server = TestServer::start(|_| {
        let info = json!({"sd_model_name": "sd-1.5", "sd_model_hash": "abc"}).to_string();
        let image = format!("data:image/png;base64,{}", BASE64.encode(RED_PIXEL));
        answer(200, json!({"images": [image], "info": info}))
    })
    .await;
    let further = format!("api = \"automatic1111\"\nsize = \"64x32\"\nsteps = 5\n{BUILTIN}");
    let teacher = open(&keys(&server, &further));
    let reply = ask(teacher.as_ref(), 1, &NotKept).await.unwrap();
    assert_eq!(vector(&reply), RED);
    assert_eq!(reply.provenance.served_model.as_deref(), Some("sd-1.5"));
    assert_eq!(reply.provenance.fingerprint.as_deref(), Some("abc"));
    let call = server.call();
    assert_eq!(call.path, "/v1/sdapi/v1/txt2img");
    assert_eq!(
        call.body,
        json!({"prompt": "a red pixel", "width": 64, "height": 32, "steps": 5, "seed": 1})
    );
}

#[tokio::test]
async fn a_failing_encoder_never_pays_for_the_picture_again() {
    static FAILS: AtomicBool = AtomicBool::new(true);
    let painter = TestServer::start(|_| b64()).await;
    let encoder = TestServer::start(|_| {
        if FAILS.load(Ordering::SeqCst) {
            return answer(500, json!({"error": "boom"}));
        }
        answer(
            200,
            json!({"data": [{"embedding": [1, 2]}], "model": "clip"}),
        )
    })
    .await;
    let further = format!(
        "api = \"openai\"\n[teacher.encoder]\nkind = \"embeddings\"\ninput = \"data-uri\"\nmodel = \"clip\"\nurl = \"{}/v1\"",
        encoder.url
    );
    let teacher = open(&keys(&painter, &further));
    let paid = Kept::default();
    let error = ask(teacher.as_ref(), 0, &paid).await.unwrap_err();
    assert_eq!(
        (error.class, encoder.calls().len()),
        (ErrorClass::Transient, 2)
    );
    FAILS.store(false, Ordering::SeqCst);
    // Another process, which has what was kept.
    let teacher = open(&keys(&painter, &further));
    let reply = ask(teacher.as_ref(), 0, &paid).await.unwrap();
    assert_eq!(vector(&reply), [1.0, 2.0]);
    assert_eq!(reply.provenance.tries, 2);
    painter.call();
    let input = encoder.calls()[2].body["input"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        input,
        format!("data:image/png;base64,{}", BASE64.encode(RED_PIXEL))
    );
    // Another draw is another picture.
    ask(teacher.as_ref(), 1, &paid).await.unwrap();
    assert_eq!(painter.calls().len(), 2);
}

/// Answers with an address below `prefix`, and with the picture there.
async fn with_addresses(prefix: &'static str) -> TestServer {
    TestServer::start(move |call| {
        if call.path.starts_with("/files/") {
            assert!(!call.headers.contains_key("authorization"));
            return Response::new(RED_PIXEL.to_vec().into());
        }
        let host = call.headers["host"].to_str().unwrap();
        let url = format!("{prefix}/files/a.png?signature=s").replace("HOST", host);
        answer(200, json!({"data": [{"url": url}]}))
    })
    .await
}

#[tokio::test]
async fn a_picture_behind_an_address_is_fetched_without_the_key() {
    let server = with_addresses("http://HOST").await;
    let further = format!("api = \"openai\"\napi_key_env = \"CARGO_PKG_NAME\"\n{BUILTIN}");
    let reply = ask(open(&keys(&server, &further)).as_ref(), 0, &NotKept)
        .await
        .unwrap();
    assert_eq!(vector(&reply), RED);
    let calls = server.calls();
    assert!(calls[0].headers.contains_key("authorization"));
    assert_eq!(calls.len(), 2);
}

#[tokio::test]
async fn addresses_of_other_hosts_and_paths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("files")).unwrap();
    std::fs::write(folder.path().join("files/a.png?signature=s"), RED_PIXEL).unwrap();
    for (prefix, problem) in [
        (
            "http://127.0.0.1:1",
            "not fetched from the host `127.0.0.1:1`",
        ),
        (".", "none of http, https and data"),
        ("file://", "none of http, https and data"),
    ] {
        let server = with_addresses(prefix).await;
        let further = format!("api = \"openai\"\n{BUILTIN}");
        let teacher = open_in(folder.path(), &keys(&server, &further)).unwrap();
        let error = ask(teacher.as_ref(), 0, &NotKept).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert!(error.message.contains(problem), "{error}");
        assert!(error.is_lacking, "the next row would fail alike: {error}");
        server.call();
    }
}

#[tokio::test]
async fn a_picture_on_a_host_that_is_not_allowed_is_paid_for_once() {
    let files = with_addresses("").await;
    let elsewhere = format!("{}/files/a.png", files.url);
    let painter = TestServer::start(move |_| {
        let usage = json!({"input_tokens": 1, "output_tokens": 1});
        answer(200, json!({"data": [{"url": elsewhere}], "usage": usage}))
    })
    .await;
    let paid = Kept::default();
    let further = |hosts: &str| {
        let price = "price = { per_request = 0.25 }";
        keys(
            &painter,
            &format!("api = \"openai\"\n{price}\n{hosts}\n{BUILTIN}"),
        )
    };
    for _ in 0..2 {
        let error = ask(open(&further("")).as_ref(), 0, &paid)
            .await
            .unwrap_err();
        assert!(error.is_lacking && error.tries == 1, "{error:?}");
    }
    let host = files.url.trim_start_matches("http://");
    let watch = Watch::default();
    let teacher = open_watched(&further(&format!("image_hosts = [\"{host}\"]")), &watch);
    let reply = ask(teacher.as_ref(), 0, &paid).await.unwrap();
    assert_eq!(
        (vector(&reply), reply.provenance.cost),
        (&RED[..], Some(0.25))
    );
    assert_eq!(watch.budget.spent().requests, 0);
    painter.call();
    files.call();
}

#[tokio::test]
async fn a_damaged_picture_is_made_anew_and_a_good_one_is_kept() {
    let (broken, good) = (RED_PIXEL[..50].to_vec(), RED_PIXEL.to_vec());
    let embeddings = |url: &str| {
        format!(
            "[teacher.encoder]\nkind = \"embeddings\"\ninput = \"data-uri\"\nmodel = \"clip\"\nurl = \"{url}\""
        )
    };
    let strict = TestServer::saying(400, json!({"error": {"message": "no"}})).await;
    for (first, encoder, num_painted) in [
        (&broken, BUILTIN.to_owned(), 2),
        (&broken, embeddings(&strict.url), 2),
        (&good, embeddings(&strict.url), 1),
    ] {
        let pictures = std::sync::Mutex::new(vec![good.clone(), first.clone()]);
        let painter = TestServer::start(move |_| {
            let picture = pictures.lock().unwrap().pop().unwrap();
            answer(200, json!({"data": [{"b64_json": BASE64.encode(picture)}]}))
        })
        .await;
        let teacher = open(&keys(&painter, &format!("api = \"openai\"\n{encoder}")));
        let paid = Kept::default();
        let error = ask(teacher.as_ref(), 0, &paid).await.unwrap_err();
        let num_encoded = u32::from(encoder != BUILTIN);
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert_eq!(error.tries, 1 + num_encoded, "the picture was paid for");
        let again = ask(teacher.as_ref(), 0, &paid).await;
        assert_eq!(again.is_ok(), encoder == BUILTIN);
        assert_eq!(painter.calls().len(), num_painted);
    }
}

/// What lies at its address stays damaged.
#[tokio::test]
async fn a_damaged_picture_behind_an_address_is_made_anew() {
    let num_painted = std::sync::atomic::AtomicU32::new(0);
    let painter = TestServer::start(move |call| match call.path.as_str() {
        "/files/1.png" => Response::new(RED_PIXEL[..50].to_vec().into()),
        "/files/2.png" => Response::new(RED_PIXEL.to_vec().into()),
        _ => {
            let host = call.headers["host"].to_str().unwrap();
            let number = num_painted.fetch_add(1, Ordering::SeqCst) + 1;
            let url = format!("http://{host}/files/{number}.png");
            answer(200, json!({"data": [{"url": url}]}))
        }
    })
    .await;
    let teacher = open(&keys(&painter, &format!("api = \"openai\"\n{BUILTIN}")));
    let paid = Kept::default();
    let error = ask(teacher.as_ref(), 0, &paid).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic, "{error}");
    let reply = ask(teacher.as_ref(), 0, &paid).await.unwrap();
    assert_eq!(vector(&reply), RED);
    assert_eq!(painter.calls().len(), 4, "two were painted and fetched");
}

#[test]
fn a_paid_picture_is_read_however_it_is_written() {
    let base64 = BASE64.encode(RED_PIXEL);
    let (start, end) = base64.split_at(40);
    let picture = ("image", SignalValue::Image(RED_PIXEL.to_vec()));
    let address = ("address", SignalValue::Text("http://a/b".into()));
    for (data, usage, (name, value)) in [
        (
            json!({"b64_json": format!("{start}\r\n{end}\n")}),
            json!(1.0),
            picture.clone(),
        ),
        (
            json!({"b64_json": base64.trim_end_matches('=')}),
            json!(-1),
            picture.clone(),
        ),
        (json!({"b64_json": base64, "url": ""}), json!(5e9), picture),
        (
            json!({"b64_json": "", "url": "http://a/b"}),
            json!(null),
            address,
        ),
    ] {
        let usage = json!({"input_tokens": usage, "output_tokens": usage});
        let body = json!({"data": [data], "usage": usage}).to_string();
        let reply = generator::openai(body.as_bytes()).unwrap();
        assert_eq!(reply.signals[name], value, "{body}");
    }
}

#[tokio::test]
async fn an_address_that_fails_for_a_while_is_asked_again_and_not_the_painter() {
    static NUM_FETCHED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let server = TestServer::start(|call| {
        if call.path.starts_with("/files/") {
            return match NUM_FETCHED.fetch_add(1, Ordering::SeqCst) {
                0 => answer(503, "busy"),
                1 => answer(200, "no picture"),
                _ => Response::new(RED_PIXEL.to_vec().into()),
            };
        }
        let host = call.headers["host"].to_str().unwrap();
        answer(
            200,
            json!({"data": [{"url": format!("http://{host}/files/a.png")}]}),
        )
    })
    .await;
    let num_painted = || {
        let calls = server.calls();
        calls
            .iter()
            .filter(|call| call.path.ends_with("/generations"))
            .count()
    };
    let teacher = open(&keys(&server, &format!("api = \"openai\"\n{BUILTIN}")));
    let paid = Kept::default();
    // The second try finds the address; what is there then is no picture.
    let error = ask(teacher.as_ref(), 0, &paid).await.unwrap_err();
    assert!(error.message.contains("none of PNG"), "{error}");
    assert_eq!(num_painted(), 1);
    NUM_FETCHED.store(1, Ordering::SeqCst);
    // Nor is it later, so a new one is asked for.
    let reply = ask(teacher.as_ref(), 0, &paid).await.unwrap();
    assert_eq!((vector(&reply), num_painted()), (&RED[..], 2));
    // Once the picture is kept, nothing is asked at all.
    let num_calls = server.calls().len();
    assert_eq!(vector(&ask(teacher.as_ref(), 0, &paid).await.unwrap()), RED);
    assert_eq!(server.calls().len(), num_calls);
}

#[tokio::test]
async fn replies_without_a_usable_picture_fail_their_row() {
    let further = format!("api = \"openai\"\n{BUILTIN}");
    for (status, body, problem) in [
        (200, json!({"data": []}), "the reply has no picture"),
        (200, json!({"data": [{}]}), "neither `b64_json` nor `url`"),
        (
            200,
            json!({"data": [{"b64_json": "?"}]}),
            "the picture's base64",
        ),
        (
            200,
            json!({"data": [{"b64_json": "AAAA"}]}),
            "none of PNG, JPEG",
        ),
        (
            400,
            json!({"error": {"code": "content_policy_violation", "message": "not allowed"}}),
            "not allowed",
        ),
    ] {
        let server = TestServer::saying(status, body).await;
        let error = ask(open(&keys(&server, &further)).as_ref(), 0, &NotKept)
            .await
            .unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert!(error.message.contains(problem), "{error}");
        server.call();
    }
    let server = TestServer::saying(200, json!({"images": []})).await;
    let further = format!("api = \"automatic1111\"\n{BUILTIN}");
    let error = ask(open(&keys(&server, &further)).as_ref(), 0, &NotKept)
        .await
        .unwrap_err();
    assert_eq!(error.message, "the reply has no picture");
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_sent() {
    let base = "kind = \"images\"\nurl = \"http://127.0.0.1:1\"\nmodel = \"m\"\n";
    let embeddings =
        "[teacher.encoder]\nkind = \"embeddings\"\nurl = \"http://127.0.0.1:1\"\nmodel = \"m\"\n";
    for (further, problem) in [
        (
            "api = \"openai\"".to_owned(),
            "[teacher.encoder] is missing",
        ),
        (
            format!("api = \"openai\"\nsteps = 3\n{BUILTIN}"),
            "this `api` has no such key",
        ),
        (
            format!("api = \"automatic1111\"\nrevised_prompt = true\n{BUILTIN}"),
            "does not change prompts",
        ),
        (
            format!("api = \"openai\"\noptions = {{n = 4}}\n{BUILTIN}"),
            "`n` is written by harvest",
        ),
        (
            format!("api = \"openai\"\nsize = \"big\"\n{BUILTIN}"),
            "expected a size",
        ),
        (
            "api = \"openai\"\n[teacher.encoder]\nkind = \"sketch\"".to_owned(),
            "draws pictures",
        ),
        (
            format!("api = \"openai\"\n{embeddings}prompt = \"x\""),
            "nothing else",
        ),
    ] {
        let refusal = configure(&format!("{base}{further}")).unwrap_err();
        assert!(refusal.contains(problem), "{refusal}");
    }
    for (encoder, problem) in [
        (embeddings.to_owned(), "input = \"text\""),
        (embeddings.replace("embeddings", "tei"), "takes no pictures"),
        (
            embeddings.replace("embeddings", "anthropic"),
            "something else than one feature",
        ),
    ] {
        let keys = format!("{base}api = \"openai\"\n{encoder}");
        let refusal = open_in(Path::new("."), &keys).unwrap_err();
        assert!(refusal.message.contains(problem), "{refusal}");
    }
}
