//! ROUGE-L.

/// Words as the `rouge-score` package takes them by default: lower-cased runs of ASCII letters and digits. No stemming.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|letter: char| !letter.is_ascii_lowercase() && !letter.is_ascii_digit())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// F1 of the longest common subsequence of words (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"),
/// from 0 to 1; 0 where either text has no word. The value of `rouge_score` 0.1.2 with `use_stemmer=False`.
pub fn rouge_l(predicted: &str, expected: &str) -> f64 {
    let (predicted, expected) = (words(predicted), words(expected));
    let common = longest_common_subsequence(&predicted, &expected);
    if common == 0 {
        return 0.0;
    }
    let precision = common as f64 / predicted.len() as f64;
    let recall = common as f64 / expected.len() as f64;
    2.0 * precision * recall / (precision + recall)
}

fn longest_common_subsequence(one: &[String], other: &[String]) -> usize {
    // lengths[j]: of the words of `one` so far and the first j of `other`.
    let mut lengths = vec![0; other.len() + 1];
    for word in one {
        let mut diagonal = 0;
        for (index, candidate) in other.iter().enumerate() {
            let above = lengths[index + 1];
            lengths[index + 1] = if word == candidate {
                diagonal + 1
            } else {
                above.max(lengths[index])
            };
            diagonal = above;
        }
    }
    lengths[other.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        predicted: String,
        expected: String,
        rouge_l: f64,
    }

    /// Made by `scripts/golden/rouge.py` with `rouge-score` 0.1.2.
    #[test]
    fn matches_the_rouge_score_package() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../tests/golden/rouge_l.json")).unwrap();
        assert_eq!(cases.len(), 14);
        for case in cases {
            let actual = rouge_l(&case.predicted, &case.expected);
            assert!(
                (actual - case.rouge_l).abs() < 1e-12,
                "{:?}: {actual}, not {}",
                case.predicted,
                case.rouge_l
            );
        }
    }
}
