//! Reads the reply of llama.cpp's own `/completion`.

use schemas::record::TopKPosition;
use serde::Deserialize;

use super::super::class::{ErrorClass, TeacherError};
use super::super::json::{self, count};
use super::super::tokens::{WrittenPosition, check_whole, lacks};

#[derive(Debug, Deserialize)]
pub(super) struct LlamaCppReply {
    pub(super) content: String,
    #[serde(default)]
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) stop_type: Option<String>,
    #[serde(default, deserialize_with = "count")]
    pub(super) tokens_predicted: Option<u32>,
    #[serde(default, deserialize_with = "count")]
    pub(super) tokens_evaluated: Option<u32>,
    /// Whether the server cut the text to its context.
    #[serde(default)]
    truncated: bool,
    #[serde(default)]
    completion_probabilities: Option<Vec<WrittenPosition>>,
}

const ADVICE: &str = "set `teacher.url` to the server's address without `/v1`, and update llama.cpp: versions before \
    December 2024 write probabilities otherwise";

impl LlamaCppReply {
    /// Reads a reply.
    ///
    /// # Errors
    /// As [`json::read`]; deterministic where the server cut the text.
    pub(super) fn parse(body: &[u8]) -> Result<Self, TeacherError> {
        let reply: Self = json::read(body, "completion of llama.cpp").map_err(|error| {
            if error.class == ErrorClass::Deterministic {
                error.advise(ADVICE)
            } else {
                error
            }
        })?;
        if reply.truncated {
            let problem = "the server cut the text to fit its context";
            return Err(TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("shorten the text, or raise the server's `--ctx-size`"));
        }
        Ok(reply)
    }

    /// Takes the positions of the generated tokens, for the signal named.
    ///
    /// # Errors
    /// Deterministic where there are none, or they are no log-probabilities.
    pub(super) fn top_k(
        &mut self,
        k: u32,
        signal: &str,
    ) -> Result<Vec<TopKPosition>, TeacherError> {
        let generated = self.tokens_predicted != Some(0);
        match self.completion_probabilities.take() {
            // A reply without tokens may leave the list out.
            None if !generated => Ok(Vec::new()),
            None => Err(lacks("`completion_probabilities`", signal, ADVICE)),
            Some(positions) => {
                let positions = positions.into_iter().map(|position| position.read(k));
                let positions = positions.collect::<Result<Vec<_>, _>>()?;
                if !positions.is_empty() && positions.iter().all(|p| p.entries.is_empty()) {
                    return Err(lacks("`top_logprobs`", signal, ADVICE));
                }
                // The tokens of a stop word are left out on purpose.
                if self.stop_type.as_deref() != Some("word") {
                    check_whole(positions.len(), self.tokens_predicted, signal)?;
                }
                Ok(positions)
            }
        }
    }
}
