//! Against real children: shell scripts.

use std::time::Instant;

use schemas::{ExampleId, SignalValue, Task};

use super::*;
use crate::config::{CommonConfig, RunConfig};
use crate::teacher::NotKept;

/// A teacher whose prompts say how it shall behave.
const SCRIPT: &str = r#"
echo '{"armada": 1}'
echo ready >&2
while read -r line; do
  id=$(printf '%s' "$line" | sed 's/.*"id":"\([0-9a-f]*\)".*/\1/')
  image=$(printf '%s' "$line" | sed 's/.*"image":\(.*\)}$/\1/')
  answer() { printf '{"id": "%s", "draw": 0, %s}\n' "$id" "$1"; }
  case "$line" in
    *'"prompt":"die"'*) echo 'out of memory' >&2; exit 3 ;;
    *'"prompt":"die once"'*)
      if [ -e "$0.died" ]; then answer '"signals": {"feature": [2], "said": "alive"}'
      else : > "$0.died"; exit 3; fi ;;
    *'"prompt":"hang"'*) exec sleep 1000 ;;
    *'"prompt":"half"'*) printf '{"id": '; exit 0 ;;
    *'"prompt":"chatter"'*) echo 'loading shard 3' ;;
    *'"prompt":"other"'*) echo '{"id": "00", "draw": 0, "signals": {}}' ;;
    *'"prompt":"nan"'*) answer '"signals": {"feature": [NaN], "said": ""}' ;;
    *'"prompt":"lacks"'*) answer '"signals": {"feature": [1]}' ;;
    *'"prompt":"extra"'*) answer '"signals": {"feature": [1], "said": "", "more": 1}' ;;
    *'"prompt":"refuse"'*) answer '"error": {"class": "deterministic", "message": "no cats"}' ;;
    *'"prompt":"quota"'*) answer '"error": {"class": "quota", "message": "no money"}' ;;
    *'"prompt":"long"'*) head -c 2000000 /dev/zero | tr '\0' 'x'; echo ;;
    *'"prompt":"base64"'*) answer '"signals": {"feature": "AACAPwAAAMA=", "said": "b"}' ;;
    *'"prompt":"image"'*) answer "\"signals\": {\"feature\": [1], \"said\": $image}" ;;
    *'"prompt":"pid"'*) answer "\"signals\": {\"feature\": [1], \"said\": \"$$\"}" ;;
    *) answer '"signals": {"feature": [0.5, -2], "said": "hm"}, "provenance": {"tokens_in": 3}' ;;
  esac
done
: > "$0.ended"
"#;

struct Child {
    folder: tempfile::TempDir,
    teacher: Command,
    stop: Stop,
}

fn configuration(script: &Path, keys: &str) -> CommandConfig {
    let script = script.display();
    toml::from_str(&format!(
        "command = [\"sh\", \"{script}\"]\nmodel = \"m\"\nmax_line_mib = 1\n{keys}\n[signals]\n\
         feature = {{ kind = \"feature\", meaning = \"a\" }}\nsaid = {{ kind = \"text\", meaning = \"b\" }}\n"
    ))
    .unwrap()
}

fn open(folder: &Path, config: &CommandConfig, stop: &Stop) -> Result<Command, TeacherError> {
    config.teacher(&OpenContext {
        common: &CommonConfig::default(),
        run: &RunConfig::default(),
        task: &Task::builtin("sst2").unwrap(),
        data_folder: folder.to_owned(),
        state_folder: folder.to_owned(),
        watch: crate::reporter::Watch::default(),
        stop: stop.clone(),
    })
}

fn child_of(script: &str, keys: &str) -> Child {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("teacher.sh");
    std::fs::write(&path, script).unwrap();
    let stop = Stop::default();
    let teacher = open(folder.path(), &configuration(&path, keys), &stop).unwrap();
    Child {
        folder,
        teacher,
        stop,
    }
}

fn request(prompt: &str) -> Request {
    Request::text(ExampleId::from([7; 16]), 0, prompt)
}

impl Child {
    async fn ask(&self, prompt: &str) -> Result<Reply, TeacherError> {
        self.asks(&request(prompt)).await
    }

    async fn asks(&self, request: &Request) -> Result<Reply, TeacherError> {
        let one = std::slice::from_ref(request);
        self.teacher
            .query(one, &NotKept)
            .await
            .unwrap()
            .replies
            .remove(0)
    }

    async fn said(&self, prompt: &str) -> String {
        match &self.ask(prompt).await.unwrap().signals["said"] {
            SignalValue::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

async fn until(mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(
            start.elapsed() < Duration::from_mins(1),
            "it never came to that"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn one_line_in_one_line_out() {
    let child = child_of(SCRIPT, "");
    let reply = child.ask("any \"text\"\nwith é").await.unwrap();
    assert_eq!(
        reply.signals["feature"],
        SignalValue::Vector(vec![0.5, -2.0])
    );
    assert_eq!(reply.signals["said"], SignalValue::Text("hm".into()));
    assert_eq!(reply.provenance.tokens_in, Some(3));
    let base64 = child.ask("base64").await.unwrap();
    assert_eq!(
        base64.signals["feature"],
        SignalValue::Vector(vec![1.0, -2.0])
    );
    // One copy answers both.
    assert_eq!(child.said("pid").await, child.said("pid").await);
}

#[tokio::test]
async fn faults_of_a_row_have_classes_and_cost_no_other_row() {
    use ErrorClass::{Deterministic, Quota, Transient};
    let child = child_of(SCRIPT, "timeout_seconds = 1");
    for (prompt, class, message) in [
        ("die", Transient, "exit status: 3"),
        ("hang", Transient, "within 1 seconds"),
        ("half", Transient, "ended before the answer was whole"),
        ("chatter", Deterministic, "no answer"),
        ("other", Deterministic, "the command answered 00 draw 0"),
        ("nan", Deterministic, "no answer"),
        (
            "lacks",
            Deterministic,
            "signal `said` of the command: the answer lacks it",
        ),
        ("extra", Deterministic, "a signal `more`"),
        ("refuse", Deterministic, "the command says: no cats"),
        ("quota", Quota, "no money"),
        ("long", Deterministic, "longer than 1 MiB"),
    ] {
        let error = child.ask(prompt).await.unwrap_err();
        assert_eq!(error.class, class, "{prompt}: {error}");
        assert!(error.message.contains(message), "{prompt}: {error}");
        // On a loaded machine a new copy may not be there within a second.
        let mut next = child.ask("next").await;
        while next.as_ref().is_err_and(TeacherError::is_retryable) {
            next = child.ask("next").await;
        }
        assert!(next.is_ok(), "after {prompt}: {next:?}");
    }
}

#[tokio::test]
async fn a_copy_that_died_is_started_again() {
    let child = child_of(SCRIPT, "");
    let error = child.ask("die").await.unwrap_err();
    assert!(
        error.message.ends_with("it last wrote: out of memory"),
        "{error}"
    );
    assert!(child.ask("die once").await.unwrap_err().is_retryable());
    assert_eq!(child.said("die once").await, "alive");
}

#[tokio::test]
async fn a_command_that_only_dies_is_given_up() {
    let child = child_of("echo started >> \"$0.log\"; exit 1", "max_restarts = 2");
    for _ in 0..3 {
        assert_eq!(
            child.ask("a").await.unwrap_err().class,
            ErrorClass::Transient
        );
    }
    for _ in 0..2 {
        let error = child.ask("a").await.unwrap_err();
        assert!(error.stops_the_run() && error.advice.is_some(), "{error}");
    }
    let log = std::fs::read_to_string(child.file("teacher.sh.log")).unwrap();
    assert_eq!(log.lines().count(), 3);
}

#[tokio::test]
async fn the_first_line_is_a_hello() {
    for (script, problem) in [
        (
            "echo loading; cat > /dev/null",
            "first line is no hello: loading",
        ),
        ("echo '{\"armada\": 2}'; cat > /dev/null", "version 2"),
        (
            "cat > /dev/null",
            "did not write its first line within 1 seconds",
        ),
    ] {
        let child = child_of(script, "start_seconds = 1");
        let error = child.ask("a").await.unwrap_err();
        assert!(error.message.contains(problem), "{error}");
        // A program that is no teacher is no row's fault; one that is late may come yet.
        assert_eq!(error.stops_the_run(), !error.is_retryable(), "{error}");
    }
}

#[tokio::test]
async fn a_copy_that_says_something_else_after_others_said_hello_costs_its_row_alone() {
    let script = "if [ -e \"$0.once\" ]; then echo loading; else : > \"$0.once\"; echo '{\"armada\": 1}'; fi; read -r line";
    let child = child_of(script, "");
    assert!(child.ask("a").await.unwrap_err().is_retryable());
    let error = child.ask("a").await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Deterministic, "{error}");
    assert!(error.message.contains("no hello"), "{error}");
}

#[tokio::test]
async fn rows_are_shared_out_among_copies() {
    let child = child_of(SCRIPT, "processes = 3");
    assert_eq!(child.teacher.describe().max_in_flight, Some(3));
    // All three are started before the first answers, since each `said` takes an idle copy or starts one.
    let (a, b, c) = futures::join!(child.said("pid"), child.said("pid"), child.said("pid"));
    assert!(a != b && b != c && a != c, "{a} {b} {c}");
    let again = child.said("pid").await;
    assert!([a, b, c].contains(&again), "{again}");
}

#[tokio::test]
async fn children_end_with_the_teacher() {
    let child = child_of(SCRIPT, "");
    child.ask("a").await.unwrap();
    let Child {
        folder, teacher, ..
    } = child;
    drop(teacher);
    // It came to the end of its input and was not killed.
    until(|| folder.path().join("teacher.sh.ended").exists()).await;

    let child = child_of(SCRIPT, "");
    let pid = child.said("pid").await;
    let process = PathBuf::from(format!("/proc/{pid}"));
    if !process.exists() {
        return;
    }
    // A row that nobody waits for any more: the copy that has it does not outlive its grace.
    let hanging = tokio::time::timeout(Duration::from_millis(50), child.ask("hang")).await;
    assert!(hanging.is_err());
    until(|| !process.exists()).await;
}

#[tokio::test]
async fn a_stop_ends_the_wait_for_a_copy() {
    let child = child_of("cat > /dev/null", "");
    child.stop.request();
    assert_eq!(
        child.ask("a").await.unwrap_err().class,
        ErrorClass::Interrupted
    );
}

#[tokio::test]
async fn pictures_are_given_by_path_and_stay_in_the_folder() {
    let child = child_of(SCRIPT, "");
    std::fs::write(child.file("a.png"), b"").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", child.file("link.png")).unwrap();
    let with = |image: &str| Request {
        image: Some(image.into()),
        ..request("image")
    };
    let reply = child.asks(&with("./a.png")).await.unwrap();
    let whole = child.file("a.png").canonicalize().unwrap();
    assert_eq!(
        reply.signals["said"],
        SignalValue::Text(whole.to_str().unwrap().into())
    );
    for (image, problem) in [
        ("../a.png", "leads out"),
        ("/etc/passwd", "leads out"),
        ("link.png", "leads out"),
        ("none.png", "cannot be read"),
        ("http://a/b.png", "is an address"),
    ] {
        let error = child.asks(&with(image)).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert!(error.message.contains(problem), "{error}");
    }
}

#[test]
fn a_program_that_cannot_run_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    std::fs::write(&plain, b"").unwrap();
    for (program, problem) in [
        ("no-such-program-anywhere", "is not in PATH"),
        ("./no/such/program", "does not exist"),
        (plain.to_str().unwrap(), "is not executable"),
    ] {
        let mut config = configuration(&plain, "");
        config.command = vec![program.into()];
        let error = open(folder.path(), &config, &Stop::default()).unwrap_err();
        assert!(
            error.message.contains(problem) && error.advice.is_some(),
            "{error}"
        );
    }
}

fn signal_of(kind: OfferKind, value: &str) -> Result<SignalValue, String> {
    let request = request("");
    let line = format!(
        "{{\"id\": \"{}\", \"draw\": 0, \"signals\": {{\"s\": {value}}}}}",
        request.id
    );
    let answer =
        protocol::Answer::parse(line.as_bytes(), &request).map_err(|error| error.message)?;
    let reply = answer.reply(&[Offer::new("s", kind, "")]);
    reply
        .map(|mut reply| reply.signals.remove("s").unwrap())
        .map_err(|error| error.message)
}

#[test]
fn every_kind_of_signal_is_read_and_checked() {
    let top_k = OfferKind::TokenTopK { k: 2 };
    let logits = OfferKind::ClassLogits { width: 2 };
    let value = signal_of(
        top_k,
        "[{\"entries\": [[5, -2.0], [6, -0.5]]}, {\"entries\": [], \"remaining_mass\": 1}]",
    );
    let Ok(SignalValue::TokenTopK(top)) = value else {
        panic!("{value:?}")
    };
    let entries = top.positions[0].entries.iter();
    let entries: Vec<_> = entries
        .map(|entry| (entry.token.id, entry.logprob))
        .collect();
    assert_eq!(entries, [(Some(6), -0.5), (Some(5), -2.0)]);
    let left = 1.0 - (-0.5_f32).exp() - (-2.0_f32).exp();
    assert!((top.positions[0].remaining_mass - left).abs() < 1e-6);
    assert!(top.positions[1].remaining_mass >= 1.0);
    assert_eq!(
        signal_of(OfferKind::Image, "\"AQI=\""),
        Ok(SignalValue::Image(vec![1, 2]))
    );
    assert_eq!(
        signal_of(logits, "[1, 2]"),
        Ok(SignalValue::Vector(vec![1.0, 2.0]))
    );
    for (kind, value, problem) in [
        (
            top_k,
            "[{\"entries\": [[1, -1], [2, -2], [3, -3]]}]",
            "3 entries, k is 2",
        ),
        (top_k, "[{\"entries\": [[1, 0.5]]}]", "no log-probability"),
        (
            top_k,
            "[{\"entries\": [[-1, -0.5]]}]",
            "expected a list of positions",
        ),
        (
            top_k,
            "[{\"entries\": [], \"remaining_mass\": 2}]",
            "no mass",
        ),
        (logits, "[1]", "1 values, the task has 2 classes"),
        (OfferKind::Feature, "[]", "empty"),
        (OfferKind::Feature, "\"AAA=\"", "no whole number of f32"),
        (OfferKind::Feature, "\"AADAfw==\"", "is NaN"),
        (OfferKind::Feature, "[1e99]", "is inf"),
        (OfferKind::Feature, "{}", "expected a list of numbers"),
        (OfferKind::Text, "1", "expected a text"),
        (OfferKind::Image, "\"%\"", "no base64"),
    ] {
        let refusal = signal_of(kind, value).unwrap_err();
        assert!(refusal.contains(problem), "{value}: {refusal}");
    }
}

#[test]
fn the_page_has_an_example_that_is_read_and_every_key() {
    let page = include_str!("../../../../docs/teachers/command.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("harvest.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        crate::Config::read(&path).map_err(|error| error.to_string())
    };
    read(example).unwrap();
    for (from, to, problem) in [
        (
            "[\"python3\", \"scripts/teachers/letters.py\"]",
            "[]",
            "it names no program",
        ),
        (
            "kind = \"feature\"",
            "kind = \"logprobs\"",
            "`k` belongs to",
        ),
        (
            "kind = \"feature\"",
            "kind = \"feature\", k = 3",
            "`k` belongs to",
        ),
    ] {
        assert!(example.contains(from));
        let refusal = read(&example.replace(from, to)).unwrap_err();
        assert!(refusal.contains(problem), "{refusal}");
    }
    let error = toml::from_str::<CommandConfig>("no_such_key = 1")
        .unwrap_err()
        .to_string();
    let (_, keys) = error.split_once("expected").unwrap();
    let keys: Vec<&str> = keys.split('`').skip(1).step_by(2).collect();
    assert!(keys.len() > 7, "{error}");
    for key in keys {
        assert!(
            page.contains(&format!("| `{key}` |")),
            "the page lacks `{key}`"
        );
    }
}
