use std::collections::{BTreeMap, HashSet};

use super::*;

/// One metric family of an OpenMetrics text.
#[derive(Debug, Default, PartialEq)]
struct MetricFamily {
    kind: String,
    unit: Option<String>,
    /// Suffix with labels, and value.
    samples: Vec<(String, f64)>,
}

/// Reads the text as strictly as its grammar is (OpenMetrics 1.0, section 3): families one after the other, metadata
/// before samples, suffixes as the type demands, buckets that grow up to `+Inf`, and `# EOF` at the very end.
fn parse(text: &str) -> Result<BTreeMap<String, MetricFamily>, String> {
    let body = text
        .strip_suffix("# EOF\n")
        .ok_or("no `# EOF` at the end")?;
    let mut families: Vec<(String, MetricFamily)> = Vec::new();
    let mut seen = HashSet::new();
    for line in body.split_terminator('\n') {
        let fail = |what: &str| format!("{what}: {line}");
        if let Some(comment) = line.strip_prefix("# ") {
            read_metadata(comment, &mut families).map_err(fail)?;
        } else {
            let (name, family) = families.last_mut().ok_or_else(|| fail("metadata first"))?;
            let (series, value) = read_sample(line, name, family).map_err(fail)?;
            if !seen.insert(series.to_owned()) {
                return Err(fail("a series once"));
            }
            family
                .samples
                .push((series[name.len()..].to_owned(), value));
        }
    }
    for (name, family) in &families {
        if family.kind == "histogram" && !has_whole_buckets(family) {
            return Err(format!("buckets of {name}"));
        }
    }
    Ok(families.into_iter().collect())
}

fn read_metadata(
    comment: &str,
    families: &mut Vec<(String, MetricFamily)>,
) -> Result<(), &'static str> {
    let parts: Vec<&str> = comment.splitn(3, ' ').collect();
    let [keyword, name, rest] = parts[..] else {
        return Err("metadata of three parts");
    };
    if !is_name(name) {
        return Err("a name");
    }
    if families.last().is_none_or(|(last, _)| last != name) {
        if families.iter().any(|(known, _)| known == name) {
            return Err("a family in one piece");
        }
        families.push((name.to_owned(), MetricFamily::default()));
    }
    let (_, family) = families.last_mut().ok_or("a family")?;
    if !family.samples.is_empty() {
        return Err("metadata before samples");
    }
    let kinds = ["counter", "gauge", "histogram"];
    match keyword {
        "HELP" => {}
        "TYPE" if kinds.contains(&rest) => family.kind = rest.to_owned(),
        "UNIT" if name.ends_with(&format!("_{rest}")) => family.unit = Some(rest.to_owned()),
        _ => return Err("known metadata"),
    }
    Ok(())
}

fn read_sample<'a>(
    line: &'a str,
    name: &str,
    family: &MetricFamily,
) -> Result<(&'a str, f64), &'static str> {
    let (series, value) = line.rsplit_once(' ').ok_or("a value")?;
    let value: f64 = value.parse().map_err(|_| "a number")?;
    let suffix = series.strip_prefix(name).ok_or("a sample of its family")?;
    let (plain, labels) = match suffix.split_once('{') {
        Some((plain, labels)) => (plain, labels.strip_suffix('}').ok_or("labels that end")?),
        None => (suffix, ""),
    };
    for label in labels.split_terminator(',') {
        let (key, value) = label.split_once('=').ok_or("a label")?;
        let inner = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        if !is_name(key) || inner.is_none_or(|inner| inner.contains(['"', '\\', '\n'])) {
            return Err("a quoted label");
        }
    }
    let suffixes: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "gauge" => &[""],
        "histogram" => &["_bucket", "_sum", "_count"],
        _ => return Err("a type before samples"),
    };
    if !suffixes.contains(&plain) {
        return Err("a suffix of its type");
    }
    if family.kind != "gauge" && !(value.is_finite() && value >= 0.0) {
        return Err("a count");
    }
    Ok((series, value))
}

fn has_whole_buckets(family: &MetricFamily) -> bool {
    let values = |prefix: &str| -> Vec<f64> {
        let samples = family.samples.iter();
        let of_prefix = samples.filter(|(suffix, _)| suffix.starts_with(prefix));
        of_prefix.map(|(_, value)| *value).collect()
    };
    let buckets = values("_bucket");
    buckets.is_sorted()
        && buckets.last() == values("_count").first()
        && values("_bucket{le=\"+Inf\"}").len() == 1
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn filled() -> Metrics {
    let metrics = Metrics::default();
    metrics.request_ended(RequestOutcome::Answered, Duration::from_millis(300));
    metrics.request_ended(
        RequestOutcome::Failed(ErrorClass::Rate),
        Duration::from_millis(3),
    );
    metrics.request_ended(
        RequestOutcome::Failed(ErrorClass::Rate),
        Duration::from_secs(1_000),
    );
    metrics.retried();
    metrics.tokens(120, 7);
    metrics.spent(0.125);
    metrics.limit_changed(0, 8);
    metrics.limit_changed(8, 6);
    metrics.request_started();
    metrics.queue_depth(17);
    metrics.committed(2, 4_096);
    metrics.row_failed();
    metrics
}

#[test]
fn the_text_follows_the_grammar_and_says_what_happened() {
    let metrics = filled();
    let text = metrics.text();
    let families = parse(&text).unwrap_or_else(|problem| panic!("{problem}\n{text}"));
    let value = |family: &str, suffix: &str| {
        let samples = &families[family].samples;
        samples
            .iter()
            .find(|(found, _)| found == suffix)
            .map(|(_, value)| *value)
    };
    assert_eq!(
        value("harvest_requests", "_total{outcome=\"rate\"}"),
        Some(2.0)
    );
    assert_eq!(
        value("harvest_requests", "_total{outcome=\"answered\"}"),
        Some(1.0)
    );
    assert_eq!(value("harvest_tokens_in", "_total"), Some(120.0));
    assert_eq!(value("harvest_spend", "_total"), Some(0.125));
    assert_eq!(value("harvest_concurrency_limit", ""), Some(6.0));
    assert_eq!(value("harvest_committed_bytes", "_total"), Some(4_096.0));
    assert_eq!(
        value("harvest_request_duration_seconds", "_bucket{le=\"0.5\"}"),
        Some(2.0)
    );
    assert_eq!(
        value("harvest_request_duration_seconds", "_count"),
        Some(3.0)
    );
    assert_eq!(
        families["harvest_request_duration_seconds"].unit.as_deref(),
        Some("seconds")
    );
    assert_eq!(metrics.num_requests(), 3);
}

#[test]
fn the_checker_refuses_what_the_grammar_does() {
    let text = filled().text();
    for (from, to) in [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n\n"),
        ("harvest_retries_total 1", "harvest_retries 1"),
        ("harvest_retries_total 1", "harvest_retries_total -1"),
        (
            "harvest_retries_total 1",
            "harvest_retries_total 1\nharvest_retries_total 1",
        ),
        ("le=\"+Inf\"} 3", "le=\"+Inf\"} 1"),
        (
            "# UNIT harvest_committed_bytes bytes",
            "# UNIT harvest_committed_bytes rows",
        ),
        ("outcome=\"rate\"", "outcome=rate"),
    ] {
        let broken = text.replacen(from, to, 1);
        assert_ne!(broken, text, "{from}");
        assert!(parse(&broken).is_err(), "{broken}");
    }
}

#[test]
fn the_file_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("harvest.prom");
    std::fs::write(&path, "old").unwrap();
    let metrics = filled();
    metrics.write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), metrics.text());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = metrics
        .write(&folder.path().join("none/harvest.prom"))
        .unwrap_err();
    assert!(error.to_string().contains("harvest.prom"), "{error}");
}

#[test]
fn every_metric_is_documented() {
    let page = include_str!("../../../docs/observability.md");
    for (name, family) in parse(&filled().text()).unwrap() {
        let documented = match family.kind.as_str() {
            "counter" => format!("| `{name}_total` | counter |"),
            kind => format!("| `{name}` | {kind} |"),
        };
        assert!(
            page.contains(&documented),
            "docs/observability.md lacks {documented}"
        );
    }
}
