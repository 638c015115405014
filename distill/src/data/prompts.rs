//! Prompts and what follows them, as token ids.

use schemas::task::LabelKind;
use schemas::{Example, Label, Task};
use tokenizers::Tokenizer;

use crate::data::PromptError;
use crate::error::Error;
use crate::student::chat::ChatFormat;
use crate::student::{Encoding, StudentError, TextTokenizer};

/// What an example of a generation task becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writing {
    /// Prompt, response and end, as the student learns it; prompt alone where there is no label.
    pub whole: Sequence,
    /// What the student goes on from when it writes.
    pub prompt: Vec<u32>,
    /// Of a multiple-choice row: the prompt with each option, without an end.
    pub options: Vec<WeighedOption>,
}

/// A prompt and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// All of it.
    pub ids: Vec<u32>,
    /// Where the response begins, 1 or more.
    pub response_start: usize,
}

impl Sequence {
    /// The tokens after the prompt.
    pub fn response(&self) -> &[u32] {
        &self.ids[self.response_start..]
    }

    /// The form of other rows.
    pub fn encoding(&self) -> Encoding {
        Encoding {
            ids: self.ids.clone(),
            type_ids: vec![0; self.ids.len()],
        }
    }
}

/// An option after its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeighedOption {
    /// Prompt and option.
    pub sequence: Sequence,
    /// Bytes of the option's text as it follows the prompt.
    pub num_bytes: usize,
}

/// Turns examples of generation tasks into token ids.
///
/// Prompt and response are tokenised together, so that a word piece after the prompt is what the model knows from
/// running text; where a token would reach over the boundary, apart. Special tokens before a text, as LLaMA's
/// `<s>`, are put before the prompt unless it begins with them.
///
/// A sequence longer than `max_length` loses tokens at the beginning of its prompt, special tokens excepted; a response
/// that is longer by itself loses its end.
#[derive(Clone)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    beginning: Vec<u32>,
    ends: Vec<u32>,
    chat: Option<ChatFormat>,
    max_length: usize,
    max_prompt: usize,
}

impl std::fmt::Debug for PromptEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PromptEncoder")
            .field("beginning", &self.beginning)
            .field("ends", &self.ends)
            .field("chat", &self.chat)
            .field("max_length", &self.max_length)
            .field("max_prompt", &self.max_prompt)
            .finish_non_exhaustive()
    }
}

impl PromptEncoder {
    /// `ends` are the tokens that end a text, the first of them the one that is learned. Prompts that the student goes
    /// on from leave room for `max_new_tokens`.
    ///
    /// # Errors
    /// [`PromptError`] where the parts do not fit; [`StudentError`] where the tokenizer fails.
    pub fn new(
        task: &Task,
        tokenizer: &TextTokenizer,
        chat: Option<ChatFormat>,
        mut ends: Vec<u32>,
        max_new_tokens: usize,
    ) -> Result<Self, Error> {
        if task.has_messages() && chat.is_none() {
            let task = task.name().to_owned();
            return Err(PromptError::NoChat { task }.into());
        }
        let max_length = tokenizer.max_length();
        let tokenizer = tokenizer.untruncated()?;
        let beginning = tokenizer
            .encode("a", true)
            .map_err(failed("a"))
            .map(|encoded| {
                let specials = encoded.get_special_tokens_mask().iter();
                let count = specials.take_while(|&&special| special == 1).count();
                encoded.get_ids()[..count].to_vec()
            })?;
        if let Some(chat) = &chat {
            let end = tokenizer
                .encode(chat.end(), false)
                .map_err(failed(chat.end()))?;
            if let [end] = end.get_ids() {
                ends.retain(|other| other != end);
                ends.insert(0, *end);
            }
        }
        if ends.is_empty() {
            return Err(PromptError::NoEnd.into());
        }
        let written = match task.label() {
            LabelKind::Text => max_new_tokens,
            _ => 0,
        };
        let needed = beginning.len() + written + 1;
        if needed >= max_length {
            return Err(PromptError::NoRoom { max_length, needed }.into());
        }
        Ok(Self {
            tokenizer,
            beginning,
            ends,
            chat,
            max_length,
            max_prompt: max_length - written,
        })
    }

    /// The tokens that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// What the student learns of, writes on from and weighs.
    ///
    /// # Errors
    /// The prompt is empty, the options cannot be read, or the tokenizer refuses a text.
    pub fn encode(&self, task: &Task, example: &Example) -> Result<Writing, Error> {
        let id = example.id();
        let text = self.prompt_text(task, example);
        let prompt = self.prompt_ids(&text)?;
        if prompt.is_empty() {
            return Err(PromptError::EmptyPrompt { id }.into());
        }
        let options = match task.label() {
            LabelKind::Choice(choices) => choices
                .options(example.fields())
                .map_err(|problem| PromptError::Options { id, problem })?,
            _ => Vec::new(),
        };
        let expected = match example.label() {
            Some(Label::Text(text)) => Some(text),
            Some(&Label::Class(class)) => options.get(class as usize),
            Some(Label::Value(_)) | None => None,
        };
        let response = match expected {
            Some(expected) => self.learned(&text, &prompt, &task.render_response(expected))?,
            None => Vec::new(),
        };
        let weighed = |option: &String| {
            let option = task.render_response(option);
            let response = self.continuation(&text, &prompt, &option)?;
            Ok(WeighedOption {
                sequence: self.fit(&prompt, response, self.max_length),
                num_bytes: option.len(),
            })
        };
        Ok(Writing {
            whole: self.fit(&prompt, response, self.max_length),
            options: options.iter().map(weighed).collect::<Result<_, Error>>()?,
            prompt: self.fit(&prompt, Vec::new(), self.max_prompt).ids,
        })
    }

    /// The text of tokens that the student wrote, without special tokens.
    ///
    /// # Errors
    /// The tokenizer refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String, StudentError> {
        self.tokenizer
            .decode(ids, true)
            .map_err(failed("written text"))
    }

    fn prompt_text(&self, task: &Task, example: &Example) -> String {
        let messages = task.conversation(example);
        match (&self.chat, &messages[..]) {
            (Some(chat), messages) => chat.prompt(messages),
            (None, [.., (_, last)]) => last.clone(),
            (None, []) => String::new(),
        }
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, StudentError> {
        let encoded = self.tokenizer.encode(text, false).map_err(failed(text))?;
        Ok(encoded.get_ids().to_vec())
    }

    fn prompt_ids(&self, text: &str) -> Result<Vec<u32>, StudentError> {
        let ids = self.ids(text)?;
        if ids.starts_with(&self.beginning) {
            return Ok(ids);
        }
        Ok([self.beginning.clone(), ids].concat())
    }

    /// The tokens of `response` after the prompt.
    fn continuation(
        &self,
        text: &str,
        prompt: &[u32],
        response: &str,
    ) -> Result<Vec<u32>, StudentError> {
        let whole = self.prompt_ids(&format!("{text}{response}"))?;
        match whole.strip_prefix(prompt) {
            Some(response) => Ok(response.to_vec()),
            None => self.ids(response),
        }
    }

    /// The tokens of a response with what ends it.
    fn learned(
        &self,
        text: &str,
        prompt: &[u32],
        response: &str,
    ) -> Result<Vec<u32>, StudentError> {
        let end = self.chat.as_ref().map_or("", ChatFormat::end);
        let mut response = self.continuation(text, prompt, &format!("{response}{end}"))?;
        if response.last().is_none_or(|last| !self.ends.contains(last)) {
            response.push(self.ends[0]);
        }
        Ok(response)
    }

    fn fit(&self, prompt: &[u32], mut response: Vec<u32>, max_length: usize) -> Sequence {
        let begins = prompt.starts_with(&self.beginning);
        let kept = if begins { self.beginning.len() } else { 0 };
        response.truncate(max_length - kept.max(1));
        let room = max_length - response.len();
        let mut ids = prompt.to_vec();
        if prompt.len() > room {
            ids.drain(kept..prompt.len() - room + kept);
        }
        let response_start = ids.len();
        ids.append(&mut response);
        Sequence {
            ids,
            response_start,
        }
    }
}

fn failed(text: &str) -> impl FnOnce(tokenizers::Error) -> StudentError {
    let origin = format!("text {text:?}");
    move |error| StudentError::Tokenizer {
        origin,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use schemas::Split;
    use schemas::task::TaskConfig;
    use serde_json::json;

    use super::*;

    const WRITTEN: &str = "name = \"t\"\nfields = [\"p\"]\nresponse = \"r\"\nmetric = \"rouge_l\"\n\
                           [template]\nfirst = \"{p}\"\n";
    const CHOSEN: &str = "name = \"t\"\nfields = [\"p\", \"o\"]\nlabel = \"r\"\nchoices = \"o\"\n\
                          metric = \"accuracy\"\n[template]\nfirst = \"{p}\"\nresponse = \"b{response}\"\n";

    /// Ids: `a` 3, `b` 4, `c` 5, `ab` 6; `<s>` 0 stands before a text.
    fn tokenizer(max_length: usize) -> TextTokenizer {
        let special = |id: usize, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        let text = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let definition = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<pad>")],
            "pre_tokenizer": null, "decoder": {"type": "Fuse"},
            "post_processor": {
                "type": "TemplateProcessing", "single": text, "pair": text,
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            },
            "model": {
                "type": "BPE", "merges": [["a", "b"]],
                "vocab": {"<s>": 0, "</s>": 1, "<pad>": 2, "a": 3, "b": 4, "c": 5, "ab": 6},
            },
        });
        let dir = tempfile::tempdir().unwrap();
        let settings = json!({"pad_token": "<pad>"});
        std::fs::write(dir.path().join("tokenizer.json"), definition.to_string()).unwrap();
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            settings.to_string(),
        )
        .unwrap();
        TextTokenizer::from_dir(dir.path(), max_length).unwrap()
    }

    fn task(text: &str) -> Task {
        let config: TaskConfig = toml::from_str(text).unwrap();
        config.try_into().unwrap()
    }

    fn example(fields: &[(&str, &str)], label: Option<Label>) -> Example {
        let fields = fields
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        Example::new(fields.collect(), label, Split::train())
    }

    fn written(prompt: &str, response: &str, max_length: usize) -> Writing {
        let task = task(WRITTEN);
        let encoder = PromptEncoder::new(&task, &tokenizer(max_length), None, vec![1], 2).unwrap();
        let label = Label::Text(response.to_owned());
        encoder
            .encode(&task, &example(&[("p", prompt)], Some(label)))
            .unwrap()
    }

    #[test]
    fn prompt_and_response_are_one_text_unless_a_token_would_reach_over() {
        let joined = written("ab", "ca", 16);
        assert_eq!(joined.whole.ids, [0, 6, 5, 3, 1]);
        assert_eq!(joined.whole.response(), [5, 3, 1]);
        assert_eq!(joined.prompt, [0, 6]);
        let apart = written("ca", "bc", 16);
        assert_eq!(apart.whole.ids, [0, 5, 3, 4, 5, 1]);
        assert_eq!(apart.whole.response_start, 3);
    }

    #[test]
    fn what_the_text_brings_itself_is_not_put_twice() {
        let own = written("<s>c", "c</s>", 16);
        assert_eq!(own.whole.ids, [0, 5, 5, 1]);
    }

    #[test]
    fn a_long_prompt_loses_its_beginning_and_a_long_response_its_end() {
        let long = written("abcccb", "ca", 6);
        assert_eq!(long.whole.ids, [0, 5, 4, 5, 3, 1]);
        assert_eq!(long.whole.response_start, 3);
        // Two tokens are left for what is written.
        assert_eq!(long.prompt, [0, 5, 5, 4]);
        let longer = written("ab", "cacaca", 6);
        assert_eq!(longer.whole.ids, [0, 5, 3, 5, 3, 5]);
        assert_eq!(longer.whole.response_start, 1);
    }

    #[test]
    fn options_are_weighed_without_an_end() {
        let task = task(CHOSEN);
        let encoder = PromptEncoder::new(&task, &tokenizer(16), None, vec![1], 64).unwrap();
        let row = [("p", "c"), ("o", "[\"c\", \"aé\"]")];
        let writing = encoder
            .encode(&task, &example(&row, Some(Label::Class(0))))
            .unwrap();
        assert_eq!(writing.whole.ids, [0, 5, 4, 5, 1]);
        assert_eq!(writing.options[0].sequence.response(), [4, 5]);
        assert_eq!(writing.options[0].num_bytes, 2);
        assert_eq!(writing.options[1].num_bytes, 4);
        let unlabelled = encoder.encode(&task, &example(&row, None)).unwrap();
        assert_eq!(unlabelled.whole.ids, [0, 5]);
        assert_eq!(unlabelled.options, writing.options);
    }

    #[test]
    fn a_chat_is_ended_by_its_own_token() {
        #[derive(serde::Deserialize)]
        struct Student {
            chat: ChatFormat,
        }
        let chat = "[chat]\nmessage = \"{role}{text}\"\nresponse = \"c\"\nend = \"</s>\"\n";
        let Student { chat } =
            toml::from_str(&chat.replace("{role}", "a{!role}{role}{/role}")).unwrap();
        let task = task(WRITTEN);
        let encoder = PromptEncoder::new(&task, &tokenizer(16), Some(chat), vec![2], 2).unwrap();
        assert_eq!(encoder.ends(), [1, 2]);
        let row = example(&[("p", "b")], Some(Label::Text("a".to_owned())));
        let writing = encoder.encode(&task, &row).unwrap();
        assert_eq!(writing.whole.ids, [0, 6, 5, 3, 1]);
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        let task = task(WRITTEN);
        let refused = |ends: Vec<u32>, max_new_tokens| {
            PromptEncoder::new(&task, &tokenizer(8), None, ends, max_new_tokens)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refused(Vec::new(), 2),
            "the student's configuration names no token that ends a text"
        );
        assert_eq!(
            refused(vec![1], 6),
            "`student.max_length` is 8: 8 tokens are needed beside the prompt"
        );
    }
}
