//! The native protocol of Anthropic: `/messages`. It gives text and no log-probabilities.

use std::sync::Arc;

use futures::future::BoxFuture;
use schemas::Provenance;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::exchange::{Direct, Exchange, ExchangeKind};
use super::generated::{self, check_signals, picture};
use super::generation::{GenerationConfig, Signal};
use super::http::KeyHeader;
use super::json;
use super::media::Media;
use super::{
    Answers, Description, ErrorClass, OpenContext, Reply, Request, TeacherError, TeacherKind, Usage,
};
use crate::config::{ConfigError, Section, ServerConfig};

/// The version of the protocol that this file speaks.
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// `[teacher]` with `kind = "anthropic"`, besides what is shared.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnthropicConfig {
    /// The system's prompt.
    system: Option<String>,
}

#[derive(Clone, Debug)]
struct Configured {
    server: ServerConfig,
    generation: GenerationConfig,
    own: AnthropicConfig,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Arc<dyn TeacherKind>, ConfigError> {
    let whole = section.clone();
    let mut server: ServerConfig = section.part(&ServerConfig::KEYS)?;
    let generation = GenerationConfig::read(&mut section)?;
    let own = section.rest()?;
    let problem = "Anthropic's protocol gives no log-probabilities at all, only `text`: ask a teacher that has them, \
                   such as `chat` with a server of your own";
    check_signals(&generation, &[Signal::Text], &whole, problem)?;
    let mut options = Map::new();
    generation.fill(&mut options, 0);
    if options.contains_key("seed") {
        let problem = "Anthropic's protocol takes no seed: draws differ by chance alone";
        return Err(whole.refuse_key("seed", problem));
    }
    if options.contains_key("system") {
        let problem = "`system` has a key of its own";
        return Err(whole.refuse_key("options", problem));
    }
    let (name, value) = VERSION;
    if !server
        .headers
        .keys()
        .any(|header| header.eq_ignore_ascii_case(name))
    {
        server.headers.insert(name.to_owned(), value.to_owned());
    }
    let kind = Configured {
        server,
        generation,
        own,
    };
    Ok(Direct::of(kind, KeyHeader::Named("x-api-key")))
}

impl ExchangeKind for Configured {
    fn server(&self) -> &ServerConfig {
        &self.server
    }

    fn exchange(&self, context: &OpenContext<'_>) -> Result<Arc<dyn Exchange>, TeacherError> {
        let mut settings = self.generation.settings();
        for key in ["seed", "top_logprobs"] {
            settings.remove(key);
        }
        settings.insert("system".into(), json!(self.own.system));
        Ok(Arc::new(Messages {
            description: generated::describe("anthropic", &self.server, settings, &self.generation),
            generation: self.generation.clone(),
            own: self.own.clone(),
            media: Media::new(context)?,
        }))
    }
}

#[derive(Debug)]
struct Messages {
    description: Description,
    generation: GenerationConfig,
    own: AnthropicConfig,
    media: Media,
}

#[derive(Deserialize)]
struct ReplyBody {
    content: Vec<Block>,
    model: Option<String>,
    stop_reason: Option<String>,
    usage: Option<TokenUsage>,
}

/// Blocks of other types, such as thinking, are no part of the answer.
#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Deserialize)]
#[expect(clippy::struct_field_names, reason = "the protocol's names")]
struct TokenUsage {
    input_tokens: Option<u32>,
    cache_creation_input_tokens: Option<u32>,
    cache_read_input_tokens: Option<u32>,
    output_tokens: Option<u32>,
}

impl TokenUsage {
    /// Tokens that a cache served are counted apart.
    fn tokens_in(&self) -> Option<u32> {
        let cached = [
            self.cache_creation_input_tokens,
            self.cache_read_input_tokens,
        ];
        let cached = cached.into_iter().flatten().fold(0, u32::saturating_add);
        Some(self.input_tokens?.saturating_add(cached))
    }
}

impl Messages {
    async fn write(&self, requests: &[Request]) -> Result<Vec<u8>, TeacherError> {
        let request = requests.first().expect("a batch has a request");
        let mut content = Vec::new();
        if let Some(picture) = picture(&self.media, request).await? {
            let (media_type, data) = (picture.media_type, picture.base64());
            let source = json!({"type": "base64", "media_type": media_type, "data": data});
            content.push(json!({"type": "image", "source": source}));
        }
        content.push(json!({"type": "text", "text": request.prompt}));
        let mut body = Map::new();
        self.generation.fill(&mut body, request.draw);
        body.insert("model".into(), json!(self.description.identity.model));
        body.insert("max_tokens".into(), json!(self.generation.max_tokens()));
        body.insert(
            "messages".into(),
            json!([{"role": "user", "content": content}]),
        );
        if let Some(system) = &self.own.system {
            body.insert("system".into(), json!(system));
        }
        Ok(Value::Object(body).to_string().into_bytes())
    }

    fn reply(&self, body: ReplyBody) -> Result<Reply, TeacherError> {
        let unusable = |problem: &str| TeacherError::new(ErrorClass::Deterministic, problem);
        if body.stop_reason.as_deref() == Some("refusal") {
            return Err(unusable("the model refused to answer"));
        }
        let blocks = body
            .content
            .into_iter()
            .filter(|block| block.kind == "text");
        let texts: Vec<String> = blocks.filter_map(|block| block.text).collect();
        if texts.concat().is_empty() && body.stop_reason.as_deref() == Some("max_tokens") {
            return Err(unusable("the reply ended before it had any text")
                .advise("raise `max_tokens` of the teacher"));
        }
        if texts.is_empty() {
            return Err(unusable("the reply has no text"));
        }
        let usage = body.usage.as_ref();
        let provenance = Provenance {
            served_model: body.model,
            finish_reason: body.stop_reason,
            tokens_in: usage.and_then(TokenUsage::tokens_in),
            tokens_out: usage.and_then(|usage| usage.output_tokens),
            ..Provenance::default()
        };
        generated::reply(
            &self.generation,
            texts.concat(),
            || Ok(Vec::new()),
            provenance,
        )
    }
}

impl Exchange for Messages {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn path(&self) -> Vec<String> {
        vec!["messages".into()]
    }

    fn body<'a>(&'a self, requests: &'a [Request]) -> BoxFuture<'a, Result<Vec<u8>, TeacherError>> {
        Box::pin(self.write(requests))
    }

    fn parse(&self, _requests: &[Request], reply: &[u8]) -> Result<Answers, TeacherError> {
        Ok(vec![self.reply(json::read(reply, "message")?)].into())
    }

    fn most(&self, requests: &[Request]) -> Usage {
        let num_fixed_bytes = self.generation.num_fixed_bytes(self.own.system.as_deref());
        generated::most(requests, self.generation.max_tokens(), num_fixed_bytes)
    }
}

#[cfg(test)]
mod tests {
    use schemas::{SignalValue, TeacherIdentity};

    use super::super::media::tests::RED_PIXEL;
    use super::super::test_server::{
        TestServer, ask_one, configure, open, open_in, open_once, request,
    };
    use super::super::{BatchLimits, NotKept};
    use super::*;

    fn keys(server: &TestServer, further: &str) -> String {
        let url = &server.url;
        format!("kind = \"anthropic\"\nurl = \"{url}/v1\"\nmodel = \"c\"\n{further}")
    }

    #[tokio::test]
    async fn text_comes_from_text_and_picture() {
        let usage = json!({"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 2});
        let server = TestServer::saying(
            200,
            json!({
                "type": "message", "model": "c-1", "stop_reason": "end_turn", "usage": usage,
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "red"}],
            }),
        )
        .await;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("red.png"), RED_PIXEL).unwrap();
        // A variable that is set in every test, in place of a key.
        let key = std::env::var("CARGO_PKG_NAME").unwrap();
        let further = "image_field = \"picture\"\napi_key_env = \"CARGO_PKG_NAME\"\nsystem = \"short\"\n\
                       max_tokens = 5\ntemperature = 0.5\noptions = {top_k = 3}";
        let teacher = open_in(folder.path(), &keys(&server, further)).unwrap();
        let mut asked = request(0, "which colour?");
        asked.image = Some("red.png".into());
        let reply = teacher
            .query(&[asked], &NotKept)
            .await
            .unwrap()
            .replies
            .remove(0)
            .unwrap();
        assert_eq!(reply.signals["text"], SignalValue::Text("red".into()));
        let provenance = &reply.provenance;
        assert_eq!(
            (provenance.tokens_in, provenance.tokens_out),
            (Some(13), Some(2))
        );
        assert_eq!(provenance.finish_reason.as_deref(), Some("end_turn"));
        assert_eq!(provenance.served_model.as_deref(), Some("c-1"));
        let mut call = server.call();
        assert_eq!(call.path, "/v1/messages");
        assert_eq!(call.headers["anthropic-version"], "2023-06-01");
        assert_eq!(call.headers["x-api-key"], key);
        assert!(!call.headers.contains_key("authorization"));
        let source = call.body["messages"][0]["content"][0]["source"].take();
        assert_eq!(
            (&source["type"], &source["media_type"]),
            (&json!("base64"), &json!("image/png"))
        );
        assert_eq!(
            call.body,
            json!({
                "model": "c", "max_tokens": 5, "temperature": 0.5, "top_k": 3, "system": "short",
                "messages": [{"role": "user", "content": [
                    {"type": "image", "source": null}, {"type": "text", "text": "which colour?"},
                ]}],
            })
        );
    }

    #[tokio::test]
    async fn errors_have_the_classes_of_the_protocol() {
        let credit = "Your credit balance is too low to access the API.";
        for (status, name, message, class, tries) in [
            (
                529,
                "overloaded_error",
                "Overloaded",
                ErrorClass::Overload,
                2,
            ),
            (429, "rate_limit_error", "slow down", ErrorClass::Rate, 2),
            (500, "api_error", "boom", ErrorClass::Transient, 2),
            (
                413,
                "request_too_large",
                "too large",
                ErrorClass::Deterministic,
                1,
            ),
            (
                400,
                "invalid_request_error",
                "prompt is too long",
                ErrorClass::Deterministic,
                1,
            ),
            (400, "invalid_request_error", credit, ErrorClass::Quota, 1),
            (
                401,
                "authentication_error",
                "invalid x-api-key",
                ErrorClass::Credentials,
                1,
            ),
        ] {
            let error = json!({"type": "error", "error": {"type": name, "message": message}});
            let server = TestServer::saying(status, error).await;
            let error = ask_one(open_once(&keys(&server, "")).as_ref(), "a")
                .await
                .unwrap_err();
            assert_eq!(
                (error.class, error.is_retryable(), server.calls().len()),
                (class, tries > 1, 1),
                "{error}"
            );
            assert!(error.message.contains(message), "{error}");
        }
    }

    #[tokio::test]
    async fn a_refusal_fails_its_row() {
        let body = json!({"content": [], "stop_reason": "refusal"});
        let server = TestServer::saying(200, body).await;
        let error = ask_one(open(&keys(&server, "")).as_ref(), "a")
            .await
            .unwrap_err();
        assert_eq!(error.message, "the model refused to answer");
        server.call();
    }

    #[tokio::test]
    async fn a_reply_without_a_text_fails_its_row() {
        for (content, text) in [
            (json!([]), None),
            (json!([{"type": "thinking", "thinking": "hm"}]), None),
            (json!([{"type": "text", "text": ""}]), Some("")),
        ] {
            let body = json!({"content": content, "stop_reason": "end_turn"});
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
    async fn the_most_counts_the_system() {
        let server = TestServer::saying(200, json!({})).await;
        let bare = open(&keys(&server, "")).most(&[request(0, "a")]);
        let system = format!("system = \"{}\"", "s".repeat(3000));
        let most = open(&keys(&server, &system)).most(&[request(0, "a")]);
        assert_eq!(most.tokens_in - bare.tokens_in, 3000);
    }

    #[test]
    fn logprobs_and_seeds_are_refused_in_the_configuration() {
        let base = "kind = \"anthropic\"\nurl = \"http://127.0.0.1:1\"\nmodel = \"m\"\n";
        for (further, problem) in [
            (
                "signals = [\"text\", \"logprobs\"]",
                "gives no log-probabilities at all",
            ),
            (
                "signals = [\"class_logits\"]",
                "gives no log-probabilities at all",
            ),
            ("seed = 1", "takes no seed"),
        ] {
            let refusal = configure(&format!("{base}{further}")).unwrap_err();
            assert!(refusal.contains(problem), "{refusal}");
        }
    }
    proptest::proptest! {
        #[test]
        fn no_reply_makes_the_parser_panic(body in ".{0,200}") {
            let messages = Messages {
                description: Description {
                    identity: TeacherIdentity {
                        kind: "anthropic".into(),
                        model: "m".into(),
                        settings: Value::Null,
                    },
                    offers: Vec::new(),
                    batch: BatchLimits::SINGLE,
                    max_in_flight: None,
                },
                generation: toml::from_str("").unwrap(),
                own: toml::from_str("").unwrap(),
                media: super::super::media::tests::media(".".as_ref(), &[]),
            };
            let inside = format!(r#"{{"content":[{{"type":"text","text":"a"}}],"usage":{body}}}"#);
            for body in [body, inside] {
                let _ = messages.parse(&[request(0, "a")], body.as_bytes());
            }
        }
    }
}
