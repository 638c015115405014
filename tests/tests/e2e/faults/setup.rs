//! How a teacher is configured, and what is to be stored of its answers.

use std::collections::BTreeMap;

use schemas::TeacherRecord;
use schemas::record::SignalValue;
use tests::fault::{Endpoint, Sent, reply_text, reply_tokens, vector};
use tests::server::WIDTH;

/// The base of the seeds of teachers that take one: draw `n` is sent with this and `n`.
const SEED: u32 = 40;

/// The variable of the key that tells clients apart.
pub(super) const CLIENT: &str = "HARVEST_FAULT_CLIENT";

/// The teacher, or teachers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Kind {
    #[default]
    Embeddings,
    Chat,
    /// Two models of embeddings fill one cache.
    Several,
    /// Embeddings through the Batch API.
    Batch,
    /// Pictures, and embeddings of them.
    Images,
}

/// How the teacher is configured.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) kind: Kind,
    pub(super) batch: usize,
    pub(super) concurrency: usize,
    pub(super) draws: u32,
    pub(super) max_tries: u32,
    pub(super) rows_per_shard: usize,
    pub(super) timeout_seconds: u32,
    /// Further lines of `[teacher]`.
    pub(super) teacher: String,
    /// Lines of `[budget]`.
    pub(super) budget: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kind: Kind::Embeddings,
            batch: 4,
            concurrency: 4,
            draws: 1,
            max_tries: 2,
            rows_per_shard: 16,
            timeout_seconds: 30,
            teacher: String::new(),
            budget: String::new(),
        }
    }
}

impl Setup {
    /// Rows that can be in flight, where a kill loses them.
    pub(super) fn num_in_flight(&self) -> usize {
        match self.kind {
            Kind::Embeddings => self.concurrency * self.batch,
            Kind::Several => 2 * self.concurrency * self.batch,
            Kind::Chat | Kind::Images | Kind::Batch => self.concurrency,
        }
    }

    /// The sections of the teachers at `url`.
    pub(super) fn teachers(&self, url: &str) -> String {
        let server = |model: &str| {
            let key = if self.teacher.contains("api_key_env") {
                String::new()
            } else {
                format!("api_key_env = \"{CLIENT}\"\n")
            };
            format!(
                "url = \"{url}\"\nmodel = \"{model}\"\nmax_reply_mib = 1\ntimeout_seconds = {}\n{key}{}\n",
                self.timeout_seconds, self.teacher
            )
        };
        let prompt = "prompt = \"{text}\"\n";
        let price = "price = { input_per_million = 1000.0 }\n";
        let vectors = format!("kind = \"embeddings\"\ndimensions = {WIDTH}\n");
        match self.kind {
            Kind::Embeddings => format!(
                "[teacher]\n{vectors}batch = {}\n{price}{prompt}{}",
                self.batch,
                server("numbers")
            ),
            Kind::Chat => format!(
                "[teacher]\nkind = \"chat\"\nsignals = [\"text\", \"logprobs\"]\ntop_logprobs = 2\nmax_tokens = 8\n\
                seed = {SEED}\n{prompt}{}\
                price = {{ input_per_million = 1000.0, output_per_million = 5000.0, per_request = 0.001 }}\n",
                server("numbers")
            ),
            Kind::Several => ["numbers", "figures"]
                .map(|model| {
                    format!(
                        "[teachers.{model}]\n{vectors}batch = {}\n{price}{prompt}{}",
                        self.batch,
                        server(model)
                    )
                })
                .concat(),
            Kind::Batch => format!(
                "[teacher]\nkind = \"batch\"\nmax_requests = {}\npoll_seconds = 1\n{price}{prompt}{}\
                [teacher.of]\n{vectors}",
                self.batch,
                server("numbers")
            ),
            Kind::Images => format!(
                "[teacher]\nkind = \"images\"\napi = \"openai\"\nseed = {SEED}\nprice = {{ per_request = 0.01 }}\n\
                {prompt}{}[teacher.encoder]\n{vectors}input = \"data-uri\"\n{price}{}",
                server("painter"),
                server("numbers")
            ),
        }
    }

    /// Checks that what is stored of a row is what the server says of its text.
    pub(super) fn check_values(&self, text: &str, record: &TeacherRecord) {
        let features = |models: &[(&str, &str)]| -> BTreeMap<String, SignalValue> {
            let of = |(signal, model): &(&str, &str)| {
                (
                    (*signal).to_owned(),
                    SignalValue::Vector(vector(model, text)),
                )
            };
            models.iter().map(of).collect()
        };
        match self.kind {
            Kind::Chat => check_chat(text, record),
            Kind::Several => {
                let both = [
                    ("numbers_feature", "numbers"),
                    ("figures_feature", "figures"),
                ];
                assert_eq!(record.signals, features(&both), "{text}");
            }
            Kind::Embeddings | Kind::Batch | Kind::Images => {
                assert_eq!(
                    record.signals,
                    features(&[("feature", "numbers")]),
                    "{text}"
                );
            }
        }
    }
}

fn check_chat(text: &str, record: &TeacherRecord) {
    let seed = u64::from(SEED + record.draw);
    assert_eq!(
        record.signals["text"],
        SignalValue::Text(reply_text(text, Some(seed)))
    );
    let SignalValue::TokenTopK(top_k) = &record.signals["logprobs"] else {
        panic!("log-probabilities are tokens");
    };
    let stored: Vec<(String, f32)> = top_k
        .positions
        .iter()
        .map(|position| {
            let chosen = position.chosen.as_ref().unwrap();
            assert_eq!(chosen, &position.entries[0]);
            assert_eq!(position.entries.len(), 2);
            let bytes = chosen.token.bytes.clone().unwrap();
            (String::from_utf8(bytes).unwrap(), chosen.logprob)
        })
        .collect();
    assert_eq!(stored, reply_tokens(text), "{text}");
}

/// What the server bills: requests, tokens and money, at the prices of the configuration.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Bill {
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) cost: f64,
}

impl Bill {
    pub(super) fn of(log: &[Sent]) -> Self {
        let mut bill = Self::default();
        for sent in log {
            bill.requests += 1;
            bill.tokens += sent.tokens_in + sent.tokens_out;
            let tokens_in = sent.tokens_in as f64 * 1e-3;
            bill.cost += match sent.endpoint {
                Endpoint::Embeddings => tokens_in,
                Endpoint::Chat => tokens_in + sent.tokens_out as f64 * 5e-3 + 1e-3,
                Endpoint::Pictures => 0.01,
            };
        }
        bill
    }
}
