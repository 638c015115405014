//! Servers that make a picture of a text.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::{Instant, SystemTime};

use futures::future::BoxFuture;
use schemas::{Provenance, SignalValue, TeacherIdentity};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::super::exchange::unix_milliseconds;
use super::super::http::{Endpoint, KeyHeader};
use super::super::json;
use super::super::media::Picture;
use super::super::options::{Options, Settings};
use super::super::{
    Answers, BatchLimits, Description, ErrorClass, Paid, Reply, Request, Teacher, TeacherError,
    Usage, binary,
};
use crate::config::{ConfigError, Section, ServerConfig};

/// The signal of the picture.
pub(super) const IMAGE: &str = "image";
/// The signal of the prompt as the server changed it.
pub(super) const REVISED_PROMPT: &str = "revised_prompt";
/// The signal of the picture's address, from servers that keep the picture themselves.
pub(super) const ADDRESS: &str = "address";

/// The keys of `[teacher]` that belong to the generator.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GeneratorConfig {
    /// The protocol.
    api: Api,
    /// Width and height in pixels, such as `512x512`; left out, the server's own.
    size: Option<Size>,
    /// Steps of denoising; left out, the server's own.
    steps: Option<NonZeroU32>,
    /// Seed of the first draw, each further one has the next. Left out, Stable Diffusion servers get 0 and others none.
    seed: Option<u32>,
    /// Further keys of the request.
    #[serde(default)]
    options: Options,
}

/// Protocols of text-to-image servers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Api {
    /// `/images/generations`
    OpenAi,
    /// `/sdapi/v1/txt2img` of the Stable Diffusion web servers.
    Automatic1111,
}

/// `<width>x<height>`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
struct Size(NonZeroU32, NonZeroU32);

impl TryFrom<String> for Size {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let sides = text.split_once('x');
        let sides = sides.and_then(|(one, two)| Some((one.parse().ok()?, two.parse().ok()?)));
        let (width, height) = sides.ok_or("expected a size such as \"512x512\"")?;
        Ok(Self(width, height))
    }
}

impl GeneratorConfig {
    const KEYS: [&str; 5] = ["api", "size", "steps", "seed", "options"];

    pub(super) fn read(section: &mut Section<'_>) -> Result<Self, ConfigError> {
        let whole = section.clone();
        let config: Self = section.part(&Self::KEYS)?;
        if config.api == Api::OpenAi && config.steps.is_some() {
            let problem = "this `api` has no such key; a server that takes it gets it by `options`";
            return Err(whole.refuse_key("steps", problem));
        }
        let own = [
            "model",
            "prompt",
            "n",
            "size",
            "width",
            "height",
            "steps",
            "seed",
            "batch_size",
            "n_iter",
        ];
        config.options.check(&whole, &own)?;
        Ok(config)
    }

    pub(super) fn revises_prompts(&self) -> bool {
        self.api == Api::OpenAi
    }

    fn body(&self, model: &str, prompt: &str, draw: u32) -> Value {
        let mut body = self.options.0.clone();
        let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
        set("prompt", prompt.into());
        let seed = match self.api {
            Api::OpenAi => {
                set("model", model.into());
                set("n", 1.into());
                if let Some(Size(width, height)) = self.size {
                    set("size", format!("{width}x{height}").into());
                }
                self.seed
            }
            Api::Automatic1111 => {
                if let Some(Size(width, height)) = self.size {
                    set("width", json!(width));
                    set("height", json!(height));
                }
                if let Some(steps) = self.steps {
                    set("steps", json!(steps));
                }
                Some(self.seed.unwrap_or(0))
            }
        };
        if let Some(seed) = seed {
            set("seed", draw_seed(seed, draw).into());
        }
        Value::Object(body)
    }
}

/// The seed of a draw: each has its own, and the same one at every try. Servers keep seeds as signed 32-bit numbers.
fn draw_seed(seed: u32, draw: u32) -> u32 {
    seed.wrapping_add(draw) & i32::MAX.cast_unsigned()
}

/// Asks for pictures.
#[derive(Debug)]
pub(super) struct Generator {
    description: Description,
    config: GeneratorConfig,
    endpoint: Endpoint,
}

impl Generator {
    pub(super) fn open(
        server: &ServerConfig,
        config: &GeneratorConfig,
    ) -> Result<Self, TeacherError> {
        let mut settings = Settings::new("api", config.api);
        settings.add(
            "size",
            config
                .size
                .map(|Size(width, height)| format!("{width}x{height}")),
        );
        settings.add("steps", config.steps);
        settings.add("seed", config.seed);
        settings.add("options", config.options.if_any());
        let identity = TeacherIdentity {
            kind: "images".into(),
            model: server.model.clone(),
            settings: settings.into(),
        };
        Ok(Self {
            description: Description {
                identity,
                offers: Vec::new(),
                batch: BatchLimits::SINGLE,
                max_in_flight: None,
            },
            config: config.clone(),
            endpoint: Endpoint::open(server, KeyHeader::Bearer)?,
        })
    }

    /// The reply with a picture or its address.
    async fn ask(&self, request: &Request) -> Result<Reply, TeacherError> {
        let sent = Instant::now();
        let path: &[&str] = match self.config.api {
            Api::OpenAi => &["images", "generations"],
            Api::Automatic1111 => &["sdapi", "v1", "txt2img"],
        };
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        let model = &self.description.identity.model;
        let body = self.config.body(model, &request.prompt, request.draw);
        let reply = self
            .endpoint
            .post(&path, body.to_string().into_bytes())
            .await?;
        let made = match self.config.api {
            Api::OpenAi => openai(&reply.body),
            Api::Automatic1111 => automatic1111(&reply.body),
        };
        let mut made = made.map_err(|error| self.endpoint.redacted(error))?;
        made.provenance.latency_ms = Some(sent.elapsed().as_secs_f32() * 1e3);
        made.provenance.answered_at = unix_milliseconds(SystemTime::now());
        made.provenance.tries = 1;
        Ok(made)
    }
}

fn unusable(problem: &str) -> TeacherError {
    TeacherError::new(ErrorClass::Deterministic, problem)
}

#[derive(Deserialize)]
struct OpenAiBody {
    #[serde(default)]
    data: Vec<OpenAiPicture>,
    usage: Option<OpenAiUsage>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct OpenAiPicture {
    b64_json: Option<String>,
    url: Option<String>,
    revised_prompt: Option<String>,
}

#[derive(Deserialize)]
struct OpenAiUsage {
    #[serde(default, deserialize_with = "json::count")]
    input_tokens: Option<u32>,
    #[serde(default, deserialize_with = "json::count")]
    output_tokens: Option<u32>,
}

/// Reads the reply of `/images/generations`.
pub(super) fn openai(body: &[u8]) -> Result<Reply, TeacherError> {
    let body: OpenAiBody = json::read(body, "list of pictures")?;
    let picture = body.data.into_iter().next();
    let picture = picture.ok_or_else(|| unusable("the reply has no picture"))?;
    // Some servers fill in the one that they do not use.
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (name, value) = match (given(picture.b64_json), given(picture.url)) {
        (Some(data), _) => (IMAGE, SignalValue::Image(decode(&data)?)),
        (None, Some(url)) => (ADDRESS, SignalValue::Text(url)),
        (None, None) => return Err(unusable("the picture has neither `b64_json` nor `url`")),
    };
    let mut signals = BTreeMap::from([(name.to_owned(), value)]);
    if let Some(revised) = picture.revised_prompt {
        signals.insert(REVISED_PROMPT.to_owned(), SignalValue::Text(revised));
    }
    let usage = body.usage.as_ref();
    Ok(Reply {
        signals,
        provenance: Provenance {
            served_model: body.model,
            tokens_in: usage.and_then(|usage| usage.input_tokens),
            tokens_out: usage.and_then(|usage| usage.output_tokens),
            ..Provenance::default()
        },
    })
}

#[derive(Deserialize)]
struct Automatic1111Body {
    #[serde(default)]
    images: Vec<String>,
    /// JSON as text.
    info: Option<String>,
}

/// Reads the reply of `/sdapi/v1/txt2img`.
pub(super) fn automatic1111(body: &[u8]) -> Result<Reply, TeacherError> {
    let body: Automatic1111Body = json::read(body, "list of pictures")?;
    let picture = body.images.first();
    let bytes = decode(picture.ok_or_else(|| unusable("the reply has no picture"))?)?;
    let info: Option<Map<String, Value>> =
        body.info.and_then(|info| serde_json::from_str(&info).ok());
    let text = |key: &str| Some(info.as_ref()?.get(key)?.as_str()?.to_owned());
    Ok(Reply {
        signals: BTreeMap::from([(IMAGE.to_owned(), SignalValue::Image(bytes))]),
        provenance: Provenance {
            served_model: text("sd_model_name"),
            fingerprint: text("sd_model_hash"),
            ..Provenance::default()
        },
    })
}

/// The picture of bare base64 or of a data URI, checked.
fn decode(data: &str) -> Result<Vec<u8>, TeacherError> {
    if data.starts_with("data:") {
        return Ok(Picture::of_data_uri(data)?.bytes);
    }
    let bytes = binary::from_base64(data);
    let bytes = bytes.map_err(|error| unusable(&format!("the picture's base64: {error}")))?;
    Ok(Picture::new(bytes, "generated")?.bytes)
}

impl Teacher for Generator {
    fn describe(&self) -> &Description {
        &self.description
    }

    fn most(&self, requests: &[Request]) -> Usage {
        /// What the largest picture of the models that count tokens takes, rounded up.
        const PICTURE_TOKENS: u64 = 8192;
        let mut usage = Usage::of_prompts(requests);
        usage.requests = requests.len() as u64;
        usage.tokens_out = requests.len() as u64 * PICTURE_TOKENS;
        usage
    }

    fn query<'a>(
        &'a self,
        requests: &'a [Request],
        _paid: &'a dyn Paid,
    ) -> BoxFuture<'a, Result<Answers, TeacherError>> {
        Box::pin(async {
            let request = requests.first().expect("a batch has a request");
            Ok(vec![Ok(self.ask(request).await?)].into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_reply_makes_a_parser_panic(body in ".{0,200}") {
            let inside = format!(r#"{{"data":[{{"b64_json":"{body}"}}],"images":["{body}"],"info":"{body}"}}"#);
            for body in [body, inside] {
                let _ = openai(body.as_bytes());
                let _ = automatic1111(body.as_bytes());
            }
        }
    }
}
