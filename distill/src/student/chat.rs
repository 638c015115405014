//! How a model was taught to read a chat: its special tokens around every message, as data.

use schemas::task::{Role, Template};
use serde::{Deserialize, Serialize};

/// Formats that a configuration may name; the files of `data/chat`.
const NAMED: [(&str, &str); 2] = [
    ("chatml", include_str!("../../../data/chat/chatml.toml")),
    ("llama-3", include_str!("../../../data/chat/llama-3.toml")),
];

/// A chat format: by name, or written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ChatDocument", into = "ChatDocument")]
pub struct ChatFormat {
    document: ChatDocument,
    message: Template,
    written: WrittenFormat,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum ChatDocument {
    Name(String),
    Written(WrittenFormat),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFormat {
    /// Before the first message.
    #[serde(default)]
    begin: String,
    /// A message, with `{role}` and `{text}`.
    message: String,
    /// What opens the answer.
    response: String,
    /// What closes it.
    end: String,
}

impl TryFrom<ChatDocument> for ChatFormat {
    type Error = String;

    fn try_from(document: ChatDocument) -> Result<Self, String> {
        let written = match &document {
            ChatDocument::Written(written) => written.clone(),
            ChatDocument::Name(name) => {
                let named = NAMED.iter().find(|(known, _)| known == name);
                let (_, text) = named.ok_or_else(|| {
                    let known = NAMED.map(|(name, _)| name);
                    format!(
                        "`student.chat` is `{name}`; a table of your own, or one of {}",
                        known.join(", ")
                    )
                })?;
                toml::from_str(text).expect("the formats that come along are complete")
            }
        };
        let fields = ["role".to_owned(), "text".to_owned()];
        let message = Template::parse(&written.message, &fields)?;
        if !fields
            .iter()
            .all(|field| message.fields().any(|name| name == field))
        {
            return Err("`student.chat.message` names both `{role}` and `{text}`".to_owned());
        }
        if written.end.is_empty() {
            return Err("`student.chat.end` is empty: nothing would end an answer".to_owned());
        }
        Ok(Self {
            document,
            message,
            written,
        })
    }
}

impl From<ChatFormat> for ChatDocument {
    fn from(format: ChatFormat) -> Self {
        format.document
    }
}

impl ChatFormat {
    /// The text up to where the answer begins.
    pub fn prompt(&self, messages: &[(Role, String)]) -> String {
        let mut prompt = self.written.begin.clone();
        for (role, text) in messages {
            prompt += &self
                .message
                .fill(|field| Some(if field == "role" { role.name() } else { text }));
        }
        prompt + &self.written.response
    }

    /// What closes the answer.
    pub fn end(&self) -> &str {
        &self.written.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    struct Student {
        chat: ChatFormat,
    }

    fn parse(text: &str) -> Result<ChatFormat, String> {
        let student: Result<Student, _> = toml::from_str(text);
        student
            .map(|student| student.chat)
            .map_err(|error| error.message().to_owned())
    }

    /// As the model cards of LLaMA 3 and of Qwen 2 write a chat.
    #[test]
    fn named_formats_write_their_special_tokens() {
        let messages = [
            (Role::System, "Be brief.".to_owned()),
            (Role::User, "Hi {you}".to_owned()),
        ];
        assert_eq!(
            parse("chat = \"llama-3\"").unwrap().prompt(&messages),
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nHi {you}<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n"
        );
        let chatml = parse("chat = \"chatml\"").unwrap();
        assert_eq!(
            chatml.prompt(&messages),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi {you}<|im_end|>\n\
             <|im_start|>assistant\n"
        );
        assert_eq!(chatml.end(), "<|im_end|>");
    }

    #[test]
    fn a_format_of_ones_own_is_checked() {
        let own =
            "[chat]\nmessage = \"{role}: {text}\\n\"\nresponse = \"assistant: \"\nend = \"\\n\"\n";
        let format = parse(own).unwrap();
        assert_eq!(
            format.prompt(&[(Role::User, "x".into())]),
            "user: x\nassistant: "
        );
        let again = toml::to_string(&Student {
            chat: format.clone(),
        })
        .unwrap();
        assert_eq!(parse(&again).unwrap(), format);
        assert_eq!(
            parse("chat = \"alpaca\"").unwrap_err(),
            "`student.chat` is `alpaca`; a table of your own, or one of chatml, llama-3"
        );
        assert_eq!(
            parse(&own.replace("{role}: ", "")).unwrap_err(),
            "`student.chat.message` names both `{role}` and `{text}`"
        );
        assert_eq!(
            parse(&own.replace("end = \"\\n\"", "end = \"\"")).unwrap_err(),
            "`student.chat.end` is empty: nothing would end an answer"
        );
    }
}
