//! The text of a card below its front matter.

use std::fmt::Write as _;

use schemas::Sha256Digest;
use schemas::columns::arrow_schema;
use schemas::notes::Rights;

use super::croissant::describe;
use super::{Card, MARKER};

pub(super) fn of(card: &Card) -> String {
    let mut text = format!(
        "<!-- {MARKER}: written by `harvest card`, which replaces this file; keep notes of your own elsewhere -->\n"
    );
    for part in [
        summary(card),
        rights(card),
        teacher(card),
        columns(card),
        quality(card),
        loading(card),
        distilling(card),
    ] {
        text.push('\n');
        text.push_str(&part);
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes all");
}

/// A cell of a table: on one line, and without what ends a cell.
fn cell(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

/// A block of code whose fence its content cannot end.
fn block(language: &str, content: &str) -> String {
    let longest = content
        .split(|character| character != '`')
        .map(str::len)
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", content.trim_end())
}

fn summary(card: &Card) -> String {
    let manifest = &card.manifest;
    let mut text = format!(
        "# {}\n\nWhat a teacher said about every example of a data set, kept once for distillation into students. \
         It holds replies and ids; the examples themselves are not in it.\n\n| | |\n|---|---|\n",
        cell(&card.title())
    );
    let state = match manifest.digest() {
        Some(digest) => format!("frozen, `{digest}`"),
        None => "open: rows may still be added".to_owned(),
    };
    let rows = [
        ("data set", manifest.dataset.task.clone()),
        ("fields of an example", manifest.dataset.fields.join(", ")),
        (
            "teacher",
            format!("{} ({})", manifest.teacher.model, manifest.teacher.kind),
        ),
        ("rows", card.stats.num_rows.to_string()),
        ("draws an example", manifest.draws.to_string()),
        (
            "shards",
            format!("{}, {} bytes", card.stats.num_shards, card.stats.num_bytes),
        ),
        ("state", state),
    ];
    for (name, value) in rows {
        line(&mut text, format_args!("| {name} | {} |", cell(&value)));
    }
    let failures: Vec<String> = card
        .failures
        .iter()
        .map(|(class, num)| format!("{num} {class}"))
        .collect();
    let failures = match failures.len() {
        0 => "none listed".to_owned(),
        _ => failures.join(", "),
    };
    line(
        &mut text,
        format_args!("| failed rows, by class | {failures} |"),
    );
    text
}

fn rights(card: &Card) -> String {
    let notes = &card.manifest.notes;
    let mut text = "## Licence and terms\n\n| | licence | terms |\n|---|---|---|\n".to_owned();
    let mut row = |name: &str, rights: &Rights| {
        let told = |value: &Option<String>| cell(value.as_deref().unwrap_or("not told"));
        line(
            &mut text,
            format_args!(
                "| {} | {} | {} |",
                cell(name),
                told(&rights.license),
                told(&rights.terms)
            ),
        );
    };
    row("data set", &notes.dataset);
    if notes.teachers.is_empty() {
        row("replies of the teacher", &Rights::default());
    }
    for teacher in &notes.teachers {
        let name = teacher.name.as_deref().unwrap_or("the teacher");
        row(&format!("replies of {name}"), &teacher.rights);
    }
    text
}

fn teacher(card: &Card) -> String {
    let manifest = &card.manifest;
    let settings = serde_json::to_string_pretty(&manifest.teacher.settings)
        .expect("settings have string keys only");
    let mut text = format!("## Teacher and prompt\n\n{}", block("json", &settings));
    if let Some(prompt) = &manifest.dataset.prompt {
        let digest = Sha256Digest::of(prompt.as_bytes());
        line(
            &mut text,
            format_args!(
                "\nThe prompt's template has the digest `{digest}`:\n\n{}",
                block("text", prompt)
            ),
        );
    }
    for teacher in &manifest.notes.teachers {
        if let (Some(name), Some(digest)) = (&teacher.name, &teacher.prompt_sha256) {
            line(
                &mut text,
                format_args!("The prompt's template of {name} has the digest `{digest}`."),
            );
        }
    }
    text
}

fn columns(card: &Card) -> String {
    let mut text = "## Columns\n\n| column | type | content |\n|---|---|---|\n".to_owned();
    for field in arrow_schema(&card.manifest.signals).fields() {
        use arrow::datatypes::DataType;
        let kind = match field.data_type() {
            DataType::FixedSizeList(element, width) => {
                format!("{width} x {}", element.data_type())
            }
            DataType::Timestamp(..) => "timestamp in milliseconds, UTC".to_owned(),
            other => other.to_string(),
        };
        let null = if field.is_nullable() {
            ", may be null"
        } else {
            ""
        };
        line(
            &mut text,
            format_args!(
                "| `{}` | {kind}{null} | {} |",
                field.name(),
                cell(&describe(card, field.name()))
            ),
        );
    }
    text
}

fn quality(card: &Card) -> String {
    let lines = card.stats.lines();
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    format!(
        "## Quality\n\nComputed from every row by `harvest stats`.\n\n{}",
        block("text", &lines.join("\n"))
    )
}

fn loading(card: &Card) -> String {
    let globs = card.shard_globs();
    let glob = match &globs[..] {
        [glob] if glob.contains('*') => glob,
        // Shards of slices, too, and not the lists of failures.
        _ => "[ps]*-*.parquet",
    };
    let code = format!(
        "import datasets, duckdb, polars\n\n\
         rows = datasets.load_dataset(\"FOLDER\", split=\"train\")  # a folder, or OWNER/NAME on the hub\n\
         rows = rows.with_format(\"torch\")                        # tensors, as transformers.Trainer takes them\n\
         polars.read_parquet(\"FOLDER/{glob}\")\n\
         duckdb.sql(\"select example_id, draw from 'FOLDER/{glob}'\")"
    );
    format!(
        "## Loading\n\n{}\nJoin it with the data set by `example_id`. A token top-k column is packed bytes.\n",
        block("python", &code)
    )
}

fn distilling(card: &Card) -> String {
    let signals = &card.manifest.signals;
    let vector = signals.iter().find(|signal| signal.vector().is_some());
    let Some(signal) = vector.or(signals.first()).map(schemas::SignalSpec::name) else {
        return String::new();
    };
    let digest = card
        .manifest
        .digest()
        .map_or("DIGEST".to_owned(), |digest| digest.to_string());
    let freeze = if card.manifest.digest().is_none() {
        "Freeze it first: `harvest freeze FOLDER` prints the digest.\n\n"
    } else {
        ""
    };
    format!(
        "## Distilling\n\n{freeze}In the configuration of a student:\n\n{}\n{}",
        block(
            "toml",
            &format!("[cache]\npath = \"FOLDER\"\nsignal = \"{signal}\"")
        ),
        block(
            "sh",
            &format!("distill train distill.toml --cache-digest {digest}")
        )
    )
}
