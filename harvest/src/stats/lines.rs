//! Statistics as lines of a name and a value.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::repeats::Repeats;
use super::spread::{SpreadSummary, short};
use super::{
    CacheStats, ImageStats, ProvenanceStats, SignalStats, TextStats, TopKStats, VectorStats,
};

/// Lines that are being written, with what their names start with.
struct Lines {
    prefix: String,
    lines: Vec<(String, String)>,
}

impl Lines {
    fn add<V: Display + ?Sized>(&mut self, name: &str, value: &V) {
        self.lines
            .push((format!("{}{name}", self.prefix), value.to_string()));
    }

    fn spread(&mut self, name: &str, spread: Option<SpreadSummary>) {
        if let Some(spread) = spread {
            self.add(name, &spread.line());
        }
    }

    fn counts(&mut self, name: &str, counts: &BTreeMap<String, u64>) {
        for (key, num) in counts {
            self.add(name, &format!("{key}: {num}"));
        }
    }

    fn repeats(&mut self, repeats: Repeats) {
        let at_least = if repeats.is_lower_bound {
            "at least "
        } else {
            ""
        };
        self.add(
            "repeated",
            &format!(
                "{at_least}{} rows, {at_least}{} distinct values",
                repeats.num_rows, repeats.num_distinct
            ),
        );
    }
}

impl CacheStats {
    /// What the verb prints: a name and a value each, names repeated where there are several values.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = Lines {
            prefix: String::new(),
            lines: Vec::new(),
        };
        lines.add("rows", &self.num_rows);
        lines.add("shards", &self.num_shards);
        lines.add("bytes", &self.num_bytes);
        if let Some(digest) = self.digest {
            lines.add("digest", &digest);
        }
        for (name, signal) in &self.signals {
            lines.prefix = format!("{name}.");
            add_signal(&mut lines, signal);
        }
        lines.prefix.clear();
        add_provenance(&mut lines, &self.provenance);
        for warning in &self.warnings {
            lines.add("warning", &warning);
        }
        lines.lines
    }
}

fn add_signal(lines: &mut Lines, signal: &SignalStats) {
    match signal {
        SignalStats::Feature(vectors) => add_vectors(lines, vectors),
        SignalStats::ClassLogits { vectors, classes } => {
            add_vectors(lines, vectors);
            for (class, num) in classes.balance.iter().enumerate() {
                lines.add("largest", &format!("class {class}: {num}"));
            }
            lines.spread("entropy", classes.entropy);
        }
        SignalStats::TokenTopK(tokens) => add_tokens(lines, tokens),
        SignalStats::Text(texts) => add_texts(lines, texts),
        SignalStats::Image(images) => add_images(lines, images),
    }
}

fn add_vectors(lines: &mut Lines, vectors: &VectorStats) {
    lines.add("width", &vectors.width);
    lines.spread("norm", vectors.norms);
    lines.add("nan", &vectors.num_nan);
    lines.add("infinite", &vectors.num_infinite);
    lines.add("zero", &vectors.num_zero);
    lines.repeats(vectors.repeats);
    let first: Vec<String> = vectors
        .first_constant
        .iter()
        .map(usize::to_string)
        .collect();
    let constant = match first.len() {
        0 => "0".to_owned(),
        num if num < vectors.num_constant => {
            format!(
                "{} (dimensions {}, ...)",
                vectors.num_constant,
                first.join(", ")
            )
        }
        num => format!("{num} (dimensions {})", first.join(", ")),
    };
    lines.add("constant", &constant);
    if let Some(rank) = vectors.effective_rank {
        lines.add(
            "effective_rank",
            &format!(
                "{} of at most {}, from {} rows",
                short(rank.value),
                rank.bound,
                rank.num_rows
            ),
        );
    }
    if let Some(cosine) = vectors.mean_cosine {
        lines.add("mean_cosine", &short(cosine));
    }
}

fn add_tokens(lines: &mut Lines, tokens: &TopKStats) {
    lines.add("k", &tokens.k);
    lines.add("positions", &tokens.num_positions);
    lines.spread("positions_per_row", tokens.positions);
    lines.add("empty", &tokens.num_empty);
    lines.spread("entries_per_position", tokens.entries);
    for (cut, mass) in &tokens.retained_mass {
        lines.add("retained_mass", &format!("top {cut}: {}", short(*mass)));
    }
    if let Some(mass) = tokens.remaining_mass {
        lines.add("remaining_mass", &short(mass));
    }
    lines.add("unbalanced", &tokens.num_unbalanced);
    lines.add("repeated_ids", &tokens.num_repeated_ids);
    if let Some(share) = tokens.share_with_ids {
        lines.add("share_with_ids", &short(share));
    }
}

fn add_texts(lines: &mut Lines, texts: &TextStats) {
    lines.spread("characters", texts.lengths);
    lines.add("empty", &texts.num_empty);
    lines.repeats(texts.repeats);
}

fn add_images(lines: &mut Lines, images: &ImageStats) {
    lines.counts("format", &images.formats);
    lines.counts("size", &images.sizes);
    lines.spread("bytes", images.num_bytes);
    lines.add("unreadable", &images.num_unreadable);
    lines.repeats(images.repeats);
}

fn add_provenance(lines: &mut Lines, provenance: &ProvenanceStats) {
    lines.counts("served_model", &provenance.served_models);
    lines.counts("fingerprint", &provenance.fingerprints);
    lines.counts("finish_reason", &provenance.finish_reasons);
    lines.add("total_tokens_in", &provenance.total_tokens_in);
    lines.spread("tokens_in", provenance.tokens_in);
    lines.add("total_tokens_out", &provenance.total_tokens_out);
    lines.spread("tokens_out", provenance.tokens_out);
    if let Some(cost) = provenance.total_cost {
        lines.add("total_cost", &short(cost));
    }
    lines.spread("tries", provenance.tries);
    lines.spread("latency_ms", provenance.latency_ms);
    if let Some((first, last)) = provenance.answered_at {
        for (name, at) in [("first_answer", first), ("last_answer", last)] {
            lines.add(name, &utc(at));
        }
    }
}

/// Milliseconds since 1970 as RFC 3339, to the second.
pub(crate) fn utc(milliseconds: i64) -> String {
    let since = std::time::Duration::from_millis(milliseconds.max(0).cast_unsigned());
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}
